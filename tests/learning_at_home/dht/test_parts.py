"""Messages longer than a datagram: in any order, twice, lost, forged, never complete."""

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning_at_home.dht.datagrams import (
    ANSWER,
    MAX_DATAGRAM_BYTES,
    MAX_MESSAGE_BYTES,
    OVERHEAD_BYTES,
    REQUEST,
    ROOM_BYTES,
    Datagram,
    is_genuine,
    read,
    sealed_parts,
)
from learning_at_home.dht.parts import (
    LIFE_S,
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_PER_SOURCE,
    MAX_VERSIONS,
    WHOLE,
    AnswerParts,
    RequestParts,
    parts_of,
)
from learning_at_home.errors import WireError

ROOM = 10
MESSAGE = bytes(range(25))
OTHER = MESSAGE[:-1] + b"!"
NAMED = (b"sender", b"message id")
PAIR_KEY = b"k" * 32


@given(st.binary(min_size=1, max_size=ROOM * MAX_PARTS), st.randoms())
def test_a_message_is_whole_again_in_whatever_order_its_parts_come(message: bytes, chance: random.Random):
    parts = list(parts_of(message, ROOM))
    chance.shuffle(parts)
    answer = AnswerParts()

    *early, last = [answer.add(*part) for part in parts]
    assert (early, last) == ([None] * len(early), message)
    assert all(len(data) <= ROOM for _, data in parts)


def test_what_fits_one_datagram_is_no_part():
    assert list(parts_of(MESSAGE, len(MESSAGE))) == [(WHOLE, MESSAGE)]


def test_a_part_that_comes_twice_counts_once_and_two_sendings_complete_each_other():
    first, second, third = parts_of(MESSAGE, ROOM)
    answer = AnswerParts()

    assert [answer.add(*part) for part in (first, first, third, first)] == [None] * 4
    assert answer.add(*second) == MESSAGE


def test_parts_of_an_answer_that_changed_meanwhile_never_mix():
    answer = AnswerParts()
    old, new = list(parts_of(MESSAGE, ROOM)), list(parts_of(OTHER, ROOM))

    assert [answer.add(*part) for part in (old[0], old[1], new[0], new[2])] == [None] * 4
    assert answer.add(*new[1]) == OTHER
    assert answer.add(*old[2]) == MESSAGE


def test_parts_that_are_not_what_their_digest_says_are_a_wire_error():
    (first, data), *rest = parts_of(MESSAGE, ROOM)
    answer, requests = AnswerParts(), RequestParts(Counter())
    answer.add(first, b"x" * len(data))
    requests.add("20.0.0.1", NAMED, first, b"x" * len(data), 0.0)
    answer.add(*rest[0])
    requests.add("20.0.0.1", NAMED, *rest[0], 0.0)

    with pytest.raises(WireError):
        answer.add(*rest[1])
    with pytest.raises(WireError):
        requests.add("20.0.0.1", NAMED, *rest[1], 0.0)
    assert len(requests) == 0


def test_of_an_answer_only_the_last_versions_are_kept():
    answer = AnswerParts()
    versions = [list(parts_of(bytes([number]) * 25, ROOM)) for number in range(MAX_VERSIONS + 1)]
    for version in versions:
        answer.add(*version[0])

    assert [answer.add(*part) for part in versions[0][1:]] == [None, None]  # its first part was given up
    assert len(answer._versions) == MAX_VERSIONS


def test_requests_of_different_senders_ids_and_contents_are_put_together_each_by_itself():
    requests = RequestParts(Counter())
    named = [NAMED, (b"other sender", NAMED[1]), (NAMED[0], b"other id")]
    messages = [(request, message) for request in named for message in (MESSAGE, OTHER)]
    whole = {}
    for part in range(3):
        for request, message in messages:
            came = requests.add("20.0.0.1", request, *list(parts_of(message, ROOM))[part], 0.0)
            if came is not None:
                whole[request, message] = came

    assert whole == {(request, message): message for request, message in messages}
    assert len(requests) == 0


def test_a_request_that_is_not_complete_in_time_is_given_up_and_counted():
    counters = Counter[str]()
    requests = RequestParts(counters)
    first, second, third = parts_of(MESSAGE, ROOM)
    requests.add("20.0.0.1", NAMED, *first, 0.0)
    requests.add("20.0.0.1", NAMED, *second, LIFE_S - 0.1)

    assert requests.add("20.0.0.1", NAMED, *third, LIFE_S) is None
    assert (len(requests), counters) == (1, {"parts_dropped": 1})


def test_one_source_s_endless_requests_push_out_its_own_only():
    counters = Counter[str]()
    requests = RequestParts(counters)
    first, *rest = parts_of(MESSAGE, ROOM)
    requests.add("20.0.0.9", NAMED, *first, 0.0)
    for number in range(3 * MAX_MESSAGES):
        requests.add("20.0.0.1", (b"flood", number.to_bytes(4, "big")), *first, 0.0)

    assert len(requests) == MAX_PER_SOURCE + 1
    assert counters["parts_dropped"] == 3 * MAX_MESSAGES - MAX_PER_SOURCE
    assert [requests.add("20.0.0.9", NAMED, *part, 0.0) for part in rest] == [None, MESSAGE]


def test_endless_requests_of_many_sources_are_bounded_and_one_that_is_complete_soon_gets_through():
    requests = RequestParts(Counter())
    first, *rest = parts_of(MESSAGE, ROOM)
    flood = ((f"20.0.{number >> 8}.{number & 255}", number.to_bytes(4, "big")) for number in itertools.count())
    for source, number in itertools.islice(flood, 2_000):
        requests.add(source, (b"flood", number), *first, 0.0)
    requests.add("20.9.0.1", NAMED, *first, 0.0)
    for source, number in itertools.islice(flood, MAX_MESSAGES - 1):
        requests.add(source, (b"flood", number), *first, 0.0)

    assert len(requests) == MAX_MESSAGES
    assert [requests.add("20.9.0.1", NAMED, *part, 0.0) for part in rest] == [None, MESSAGE]
    assert sum(requests._of_source.values()) == len(requests)


@pytest.mark.parametrize("size", [1, ROOM_BYTES, ROOM_BYTES + 1, 4_150, MAX_MESSAGE_BYTES])
def test_a_message_travels_in_datagrams_of_up_to_1200_bytes(size: int):
    message = random.Random(size).randbytes(size)
    datagrams = sealed_parts(Datagram(ANSWER, b"i" * 20, b"s" * 32, message, b"tokentok"), PAIR_KEY)
    answer = AnswerParts()
    *_, whole = [answer.add(part.part, part.message) for part in map(read, datagrams)]

    assert whole == message
    assert len(datagrams) == -(-size // ROOM_BYTES)
    assert all(len(data) <= MAX_DATAGRAM_BYTES == 1_200 and is_genuine(data, PAIR_KEY) for data in datagrams)


def test_a_part_that_was_cut_off_anywhere_or_names_no_part_is_a_wire_error():
    first, last = sealed_parts(Datagram(REQUEST, b"i" * 20, b"s" * 32, b"m" * (ROOM_BYTES + 1)), PAIR_KEY)
    place = 1 + 20 + 32 + 8

    assert read(first).message + read(last).message == b"m" * (ROOM_BYTES + 1)
    for end in range(len(first)):  # none but the last may be short
        with pytest.raises(WireError):
            read(first[:end])
    for end in range(OVERHEAD_BYTES + 1):
        with pytest.raises(WireError):
            read(last[:end])
    for wrong in (b"\x02\x02", b"\x00\x00", b"\x00\x01", b"\xff\xff", bytes([0, MAX_PARTS + 1])):
        with pytest.raises(WireError):
            read(first[:place] + wrong + first[place + 2 :])
    with pytest.raises(WireError):
        read(first + b"x")
