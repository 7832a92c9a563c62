"""What of an answer has room."""

import pytest

from learning_at_home.dht.answers import FRAMING_BYTES, nodes, slots_found, values
from learning_at_home.dht.contacts import Contact
from learning_at_home.dht.datagrams import MAX_MESSAGE_BYTES, ROOM_BYTES
from learning_at_home.dht.exchange import READ_K
from learning_at_home.dht.lookup import SPARE
from learning_at_home.dht.messages import (
    MAX_NEIGHBOURS,
    READ_NEIGHBOURS,
    Answer,
    FindSlots,
    FindValue,
    encode_answer,
    neighbours_of,
)
from learning_at_home.dht.records import Record, RecordVerifier, key_of, sign_record
from learning_at_home.dht.slots import SlotStorage
from learning_at_home.dht.storage import RecordStorage
from learning_at_home.identity import Identity

NAME = "name"
KEY = key_of(NAME)
NOW = 1_000_000
NEIGHBOURS = neighbours_of([Contact(b"n" * 32, "2001:db8:1111:2222:3333:4444:5555:6666", 65_535)] * MAX_NEIGHBOURS)


class ThousandSlots:
    """Every record fills all slots of every key."""

    def slots(self, record: Record, name: str) -> range:
        return range(1_024)


def record_of(number: int, num_bytes: int) -> Record:
    person = Identity(bytes([number]) * 32)
    return sign_record(person, KEY, b"v" * num_bytes, sequence=NOW, expires_ms=NOW + 60_000)


@pytest.mark.parametrize(
    "room_bytes, fit",
    [(ROOM_BYTES, MAX_NEIGHBOURS), (FRAMING_BYTES + 3 * 53, 3), (FRAMING_BYTES + 3 * 53 - 1, 2), (40, 0)],
)
def test_of_the_neighbours_the_closest_ones_are_told_that_fit(room_bytes: int, fit: int):
    assert nodes(NEIGHBOURS, room_bytes).neighbours == NEIGHBOURS[:fit]


def test_a_read_follows_as_many_neighbours_as_come_before_records():
    assert READ_NEIGHBOURS == READ_K + SPARE


@pytest.mark.parametrize("room_bytes", [60, 100, 300, 500, 1_000, ROOM_BYTES, 2 * ROOM_BYTES, MAX_MESSAGE_BYTES])
@pytest.mark.parametrize("num_bytes", [10, 150, 400, 4_000])
def test_an_answer_is_never_longer_than_it_may_be(room_bytes: int, num_bytes: int):
    verifier = RecordVerifier()
    storage, slots = RecordStorage(verifier), SlotStorage(verifier, ThousandSlots())
    for number in range(1, 60):
        storage.put(record_of(number, num_bytes), NOW)
    for number in range(1, 4):
        slots.put(record_of(number, num_bytes), NAME, NOW)

    for neighbours in (NEIGHBOURS, ()):
        told: list[Answer] = [
            nodes(neighbours, room_bytes),
            values(FindValue(KEY, b""), storage, neighbours, room_bytes, NOW),
            slots_found(FindSlots(KEY, 0, None, b""), slots, neighbours, room_bytes, NOW),
        ]
        assert all(len(encode_answer(answer)) <= room_bytes for answer in told)


def test_neighbours_that_a_read_follows_come_before_records_and_lives():
    verifier = RecordVerifier()
    storage = RecordStorage(verifier)
    storage.put(record_of(1, 1_000), NOW)

    told = values(FindValue(KEY, b""), storage, NEIGHBOURS[:READ_NEIGHBOURS], ROOM_BYTES, NOW)
    assert (len(told.neighbours), told.records) == (READ_NEIGHBOURS, ())
    assert told.more

    rest = values(FindValue(KEY, told.more), storage, (), MAX_MESSAGE_BYTES, NOW)
    assert (len(rest.records), rest.more) == (1, b"")
