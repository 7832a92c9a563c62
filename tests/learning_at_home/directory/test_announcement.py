"""The announcement's codec: strangers write it."""

import itertools
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning_at_home.dht.records import key_of
from learning_at_home.directory.announcement import Announcement, Claim, node_key, prefix_name, project_key, spans_of
from learning_at_home.errors import WireError
from learning_at_home.expert_uid import Grid

ANNOUNCEMENT = Announcement(
    project="digits",
    name="brisk-heron",
    endpoints=("tcp://127.0.0.1:4001", "tcp://[2001:db8::1]:4001", "tcp://203.0.113.7:65535"),
    state="online",
    claims=(Claim("ffn0", ((0, 4), (8, 9)), 1_000), Claim("ffn1", ((3, 4),), 2_000)),
    issued_ms=5_000,
)


def test_an_announcement_survives_its_bytes():
    assert Announcement.from_bytes(ANNOUNCEMENT.to_bytes()) == ANNOUNCEMENT


def test_an_announcement_cut_off_anywhere_is_a_wire_error():
    data = ANNOUNCEMENT.to_bytes()
    for end in range(len(data)):
        with pytest.raises(WireError):
            Announcement.from_bytes(data[:end])


@given(st.binary(max_size=200))
def test_garbage_is_a_wire_error(data):
    with pytest.raises(WireError):
        Announcement.from_bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        {"endpoints": ("ipc:///tmp/socket",)},
        {"endpoints": ("inproc://runtime",)},
        {"endpoints": ("tcp://eth0;10.0.0.1:80",)},
        {"endpoints": ("tcp://*:80",)},
        {"endpoints": ("tcp://10.0.0.1:0",)},
        {"endpoints": ("tcp://10.0.0.1:65536",)},
        {"endpoints": ("tcp://10.0.0.1:80\n",)},
        {"endpoints": ("tcp://node.example:80",)},  # libzmq would look the name up where all connections wait
        {"endpoints": ("tcp://localhost:80",)},
        {"endpoints": ("tcp://0.0.0.0:80",)},
        {"endpoints": ("tcp://224.0.0.1:80",)},
        {"endpoints": ("tcp://10.0.0.256:80",)},
        {"endpoints": ("tcp://a:1",) * 9},
        {"name": "n" * 33},
        {"state": "offline"},
        {"claims": (Claim("ffn0", ((0, (1 << 22) + 1),), 0),)},
        {"claims": (Claim("ffn0", ((4, 4),), 0),)},
        {"claims": (Claim("ffn0", ((-1, 4),), 0),)},
        {"claims": (Claim("ffn0", ((0, 1),), -1),)},
        {"claims": (Claim("p" * 33, ((0, 1),), 0),)},
        {"claims": (Claim("ffn0", spans_of(range(0, 2_050, 2)), 0),)},
        {"claims": (Claim("ffn0", ((0, 4), (3, 8)), 0),)},  # walked twice: see MAX_CLAIMED_CELLS
        {"claims": (Claim("ffn0", ((0, 4),), 0), Claim("ffn0", ((2, 3),), 9))},
        {"claims": (Claim("ffn0", ((0, 5_000),), 0), Claim("ffn1", ((0, 5_000),), 0))},
    ],
)
def test_an_announcement_of_the_impossible_is_a_wire_error(change):
    with pytest.raises(WireError):
        Announcement.from_bytes(msgspec.structs.replace(ANNOUNCEMENT, **change).to_bytes())


@given(st.sets(st.integers(0, 300)))
def test_spans_name_every_cell_once(cells):
    spans = spans_of(cells)

    assert [cell for first, end in spans for cell in range(first, end)] == sorted(cells)
    assert all(end < following for (_, end), (following, _) in itertools.pairwise(spans))


def test_keys_of_different_things_differ():
    alice, bob = b"a" * 32, b"b" * 32
    keys = {node_key("digits", alice), node_key("digits", bob), node_key("other", alice), project_key("digits")}
    places = [((64, 64), ()), ((64, 64), (3,)), ((64, 32), ()), ((8, 8, 8), (3,)), ((8, 8, 8), (3, 0))]
    keys |= {key_of(prefix_name("digits", "ffn0", Grid(shape), indices)) for shape, indices in places}
    keys.add(key_of(prefix_name("digits", "ffn1", Grid((64, 64)), ())))

    assert len(keys) == 10


def test_a_node_with_512_scattered_cells_has_room_in_one_record():
    cells = random.Random(1).sample(range(64 * 64), 512)
    scattered = msgspec.structs.replace(ANNOUNCEMENT, claims=(Claim("ffn0", spans_of(cells), 1_700_000_000_000),))

    assert Announcement.from_bytes(scattered.to_bytes()) == scattered
    assert len(scattered.to_bytes()) < 1_500
