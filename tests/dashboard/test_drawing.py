import pytest

from dashboard.drawing import chart_top, grid_panels, is_roomy, line_path, panel_shape, stacked
from tests.dashboard.scripted_source import layer, node_row

NODES = (node_row(0), node_row(1))


@pytest.mark.parametrize(
    "grid,shape", [((4, 4), (4, 4)), ((16,), (1, 16)), ((100,), (7, 16)), ((3, 4, 5), (4, 5)), ((1,), (1, 1))]
)
def test_a_panel_shows_the_last_two_dimensions_or_wraps_the_only_one(grid: tuple[int, ...], shape: tuple[int, int]):
    assert panel_shape(grid) == shape


def test_two_dimensions_are_one_panel_without_a_caption():
    (panel,) = grid_panels(layer("ffn0", (2, 3), NODES))

    assert panel.caption == ""
    assert [(cell.uid, cell.row, cell.column) for cell in panel.cells][-1] == ("ffn0.1.2", 1, 2)


def test_more_dimensions_are_a_panel_for_each_index_of_the_first_ones():
    panels = grid_panels(layer("ffn0", (2, 2, 3), NODES))

    assert [panel.caption for panel in panels] == ["ffn0.0", "ffn0.1"]
    assert panels[1].cells[0].uid == "ffn0.1.0.0"
    assert panels[1].cells[0].index == 6


def test_one_dimension_wraps_and_its_last_line_may_be_short():
    (panel,) = grid_panels(layer("ffn0", (60,), NODES))

    assert len(panel.cells) == 60
    assert panel.rows * panel.columns > 60
    assert panel.cells[-1].uid == "ffn0.59"


@pytest.mark.parametrize("grid,roomy", [((4, 4), True), ((8, 12), True), ((16, 32), False), ((8,), True)])
def test_cells_of_a_small_grid_have_room_for_words(grid: tuple[int, ...], roomy: bool):
    assert is_roomy(grid) is roomy


def test_a_line_starts_at_the_left_and_ends_at_the_right():
    assert line_path([0, 5, 10], [0.0, 1.0, 2.0], 100, 20, 2.0) == "M0.0,20.0L50.0,10.0L100.0,0.0"


def test_a_gap_lifts_the_pen():
    assert line_path([0, 1, 2, 3], [1.0, None, 1.0, 1.0], 30, 10, 1.0) == "M0.0,0.0M20.0,0.0L30.0,0.0"


def test_a_line_of_nothing_is_empty():
    assert line_path([], [], 100, 20, 1.0) == ""


def test_stacked_lines_lie_on_each_other_and_a_gap_adds_nothing():
    assert stacked({"forward": (1.0, 2.0, None), "backward": (10.0, None, None)}) == {
        "forward": [11.0, 2.0, None],
        "backward": [10.0, None, None],
    }


@pytest.mark.parametrize("highest,top", [(0.0, 1.0), (0.9, 1.0), (1.1, 2.0), (6_000.0, 10_000.0), (2_300.0, 2_500.0)])
def test_a_charts_top_is_round(highest: float, top: float):
    assert chart_top([None, highest]) == pytest.approx(top)
