"""Which slots an announcement fills, equal to walking its cells one by one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning_at_home.dht.records import Record, key_of, sign_record
from learning_at_home.directory.announcement import node_name, prefix_name, spans_of
from learning_at_home.directory.publisher import prefix_names
from learning_at_home.directory.slot_rule import AnnouncementSlots, next_indices
from learning_at_home.expert_uid import Grid

FFN0, FFN1 = Grid((2, 3)), Grid((4,))


@given(st.data())
def test_next_indices_are_those_of_the_cells_below(data):
    grid = Grid(tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))))
    cells = data.draw(st.sets(st.integers(0, grid.num_cells + 3)))  # a claim may lie beyond the grid
    depth = data.draw(st.integers(0, len(grid.shape) - 1))
    indices = tuple(data.draw(st.integers(0, size - 1)) for size in grid.shape[:depth])

    uids = [grid.uid("ffn", cell).indices for cell in cells if cell < grid.num_cells]
    expected = sorted({uid[depth] for uid in uids if uid[:depth] == indices})
    assert next_indices(spans_of(cells), grid, indices) == expected


def test_an_announcement_fills_one_slot_at_home_and_one_per_index_below_each_prefix(swarm):
    rule = AnnouncementSlots()
    record = swarm.record(swarm.alice, {"ffn0": {0, 2, 4}, "ffn1": {3}})

    slots = {
        name: list(rule.slots(record, name))
        for name in (
            node_name("digits", swarm.alice.public_key),
            prefix_name("digits", "ffn0", FFN0, ()),
            prefix_name("digits", "ffn0", FFN0, (0,)),
            prefix_name("digits", "ffn0", FFN0, (1,)),
            prefix_name("digits", "ffn1", FFN1, ()),
        )
    }
    assert list(slots.values()) == [[0], [0, 1], [0, 2], [1], [3]]
    announcement = swarm.announcement({"ffn0": {0, 2, 4}, "ffn1": {3}})
    assert set(prefix_names(swarm.project, announcement)) == set(list(slots)[1:])


@pytest.mark.parametrize(
    "name",
    [
        "",
        "slots",
        "slots/digits/ffn0/2x3/2",  # no such line
        "slots/digits/ffn0/2x3/0.1",  # a cell, not a prefix
        "slots/digits/ffn0/2x3/0.",
        "slots/digits/ffn0/0x3/",
        "slots/digits/ffn0/9999999x9999999/",
        "slots/digits/ffn0/" + "x".join("2" * 9) + "/",
        "slots/digits/ffn0//",
        "slots/other/ffn0/2x3/",
        "slots/digits/ffn9/2x3/",
        "slots/digits/ffn0/2x3/\uff11",
        "node/digits/" + "00" * 32,
        "project/digits",
    ],
)
def test_it_fills_no_slot_of_anything_else(swarm, name):
    assert list(AnnouncementSlots().slots(swarm.record(swarm.alice, {0, 4}), name)) == []


@pytest.mark.parametrize("kind", ["draining", "no endpoint", "long life", "another's key", "garbage"])
def test_who_cannot_be_called_or_does_not_keep_the_rules_fills_no_prefix(swarm, kind):
    good = swarm.record(swarm.alice, {0})
    ours = {"key": good.key, "sequence": good.sequence, "expires_ms": good.expires_ms}
    record: Record = {
        "draining": lambda: swarm.record(swarm.alice, {0}, state="draining"),
        "no endpoint": lambda: swarm.record(swarm.alice, {0}, endpoints=()),
        "long life": lambda: swarm.record(swarm.alice, {0}, life_s=121),
        "another's key": lambda: sign_record(swarm.bob, value=good.value, **ours),
        "garbage": lambda: sign_record(swarm.alice, value=b"garbage", **ours),
    }[kind]()
    rule = AnnouncementSlots()

    assert list(rule.slots(record, prefix_name("digits", "ffn0", FFN0, ()))) == []
    assert list(rule.slots(record, node_name("digits", swarm.bob.public_key))) == []
    assert key_of(node_name("digits", swarm.alice.public_key)) == good.key
