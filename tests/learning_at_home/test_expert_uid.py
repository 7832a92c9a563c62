"""Uids, grids and patterns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning_at_home.errors import InvalidUid
from learning_at_home.expert_uid import ExpertUid, Grid, UidPattern

grids = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(lambda shape: Grid(tuple(shape)))


@given(grids, st.data())
def test_cell_and_uid_are_inverse(grid: Grid, data: st.DataObject) -> None:
    cell = data.draw(st.integers(0, grid.num_cells - 1))
    uid = grid.uid("ffn0", cell)
    assert grid.cell(uid) == cell
    assert ExpertUid.parse(str(uid)) == uid
    assert list(grid.uids("ffn0"))[cell] == uid


NOT_UIDS = (
    ["", "ffn0", "ffn0.", ".1", "ffn0.1.", "ffn0.01", "ffn0.-1", "ffn0.1_0", "FFN.1", "0ffn.1", "ffn0.x", "ffn0. 1"],
    ["ffn0.99999999", "f" * 33 + ".1", "ffn0" + ".1" * 9, "ffn0.1\n", "ffn0.\u0661", "../x.1"],
)


@pytest.mark.parametrize("text", [text for group in NOT_UIDS for text in group])
def test_what_is_no_uid_is_refused(text: str) -> None:
    with pytest.raises(InvalidUid):
        ExpertUid.parse(text)


@pytest.mark.parametrize(
    "pattern, uids",
    [
        ("ffn0.[0:2].[1:3]", ["ffn0.0.1", "ffn0.0.2", "ffn0.1.1", "ffn0.1.2"]),
        ("ffn0.3.[0:2]", ["ffn0.3.0", "ffn0.3.1"]),
        ("ffn0.3.3", ["ffn0.3.3"]),
    ],
)
def test_a_pattern_names_a_block_of_cells(pattern: str, uids: list[str]) -> None:
    assert [str(uid) for uid in UidPattern.parse(pattern).uids(Grid((4, 4)))] == uids


@pytest.mark.parametrize("pattern", ["ffn0", "ffn0.[2:2]", "ffn0.[3:1]", "ffn0.[0:4", "ffn0.[:4]", "ffn0.*"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidUid):
        UidPattern.parse(pattern)


@pytest.mark.parametrize("pattern", ["ffn0.[0:5].0", "ffn0.0", "ffn0.0.0.0", "ffn0.4.0"])
def test_a_pattern_outside_the_grid_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidUid, match="outside the grid 4x4"):
        UidPattern.parse(pattern).uids(Grid((4, 4)))


@pytest.mark.parametrize("shape", [(), (0,), (4, 0), (1,) * 9, (1 << 12, 1 << 12)])
def test_an_impossible_grid_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidUid):
        Grid(shape)
