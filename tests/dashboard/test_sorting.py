import pytest

from dashboard.contexts import NODE_COLUMNS
from dashboard.sorting import Order
from tests.dashboard.scripted_source import node_row

ROWS = (node_row(0, p95_ms=30.0), node_row(1, p95_ms=None), node_row(2, p95_ms=90.0), node_row(3, p95_ms=30.0))


@pytest.mark.parametrize("text,order", [("p95_ms", [0, 3, 2, 1]), ("-p95_ms", [2, 0, 3, 1]), (None, [0, 1, 2, 3])])
def test_what_is_unknown_comes_last_and_equals_keep_their_order(text: str | None, order: list[int]):
    assert Order.parse(text, NODE_COLUMNS).apply(ROWS) == tuple(ROWS[index] for index in order)


def test_a_column_that_does_not_exist_changes_nothing():
    assert Order.parse("-__class__", NODE_COLUMNS) == Order()


def test_clicks_go_from_the_natural_direction_to_the_other_and_back_to_the_sources_order():
    assert Order().link("rows_per_s", falling_first=True) == "?sort=-rows_per_s"
    assert Order("rows_per_s", falling=True).link("rows_per_s", falling_first=True) == "?sort=rows_per_s"
    assert Order("rows_per_s", falling=False).link("rows_per_s", falling_first=True) == "?"


def test_a_screen_reader_hears_the_direction():
    order = Order("name", falling=True)

    assert (order.aria("name"), order.aria("state")) == ("descending", "none")
