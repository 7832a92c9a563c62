"""The datagrams' codec: bytes from the network raise WireError and nothing else."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning_at_home.dht.contacts import Contact
from learning_at_home.dht.datagrams import MAX_MESSAGE_BYTES, ROOM_BYTES
from learning_at_home.dht.messages import (
    MAX_FIRST_KNOWN,
    MAX_KNOWN,
    MAX_NAMES,
    MAX_NAMES_BYTES,
    MAX_TARGETS,
    MAX_TOLD,
    MAX_WANTED,
    PING_BYTES,
    Answer,
    FindNode,
    FindSlots,
    FindValue,
    Nodes,
    Ping,
    Pong,
    Request,
    SlotsStored,
    Store,
    Stored,
    StoreSlots,
    Values,
    contacts_of,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
    neighbours_of,
)
from learning_at_home.dht.records import MAX_RECORD_BYTES, TAG_BYTES, Refusal
from learning_at_home.errors import WireError

KEY = b"k" * 20
CONTACTS = [Contact(bytes([number]) * 32, "2001:db8:1111:2222:3333:4444:5555:6666", 65_535) for number in range(19)]
CONTACTS.append(Contact(b"4" * 32, "20.0.0.1", 1))
NEIGHBOURS = neighbours_of(CONTACTS)
REQUESTS: list[Request] = [
    Ping(),
    FindNode(KEY),
    FindNode(KEY * MAX_TARGETS),
    FindValue(KEY, b""),
    FindValue(KEY, b"p" * 32),
    Store(KEY, b"record"),
]
ANSWERS: list[Answer] = [
    Pong(1),
    Nodes(NEIGHBOURS),
    Values((b"one", b"two"), b"p" * 32, NEIGHBOURS),
    Stored("", 1),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_request_survives_its_bytes_and_is_garbage_when_cut_off_anywhere(request_: Request):
    message = encode_request(request_)

    assert decode_request(message) == request_
    for end in range(len(message)):
        with pytest.raises(WireError):
            decode_request(message[:end])


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_survives_its_bytes_and_is_garbage_when_cut_off_anywhere(answer: Answer):
    message = encode_answer(answer)

    assert decode_answer(message, type(answer)) == answer
    for end in range(len(message)):
        with pytest.raises(WireError):
            decode_answer(message[:end], type(answer))


def test_neighbours_survive_their_bytes_and_what_is_none_is_left_out():
    assert contacts_of(NEIGHBOURS) == CONTACTS
    assert contacts_of((b"n" * 40, *NEIGHBOURS[:1])) == CONTACTS[:1]


def test_an_answer_may_grow():
    grown = msgspec.msgpack.encode([5, "what a later version adds"])

    assert decode_answer(grown, Pong) == Pong(5)


def test_what_is_allowed_fits_as_many_datagrams_as_a_message_takes():
    longest_names = tuple("n" * (MAX_NAMES_BYTES // MAX_NAMES) for _ in range(MAX_NAMES))
    names = StoreSlots(b"r" * MAX_RECORD_BYTES, longest_names)
    found = FindSlots(KEY, 1 << 21, (1 << 21,) * MAX_WANTED, b"t" * TAG_BYTES * MAX_KNOWN)

    for request in (Store(KEY, b"r" * MAX_RECORD_BYTES), names, found):
        assert len(encode_request(request)) <= MAX_MESSAGE_BYTES


def test_what_is_to_travel_in_one_datagram_fits_one():
    longest_refusal = max(map(len, Refusal))
    first = FindSlots(KEY, 65_535, (65_535,) * MAX_WANTED, b"t" * TAG_BYTES * MAX_FIRST_KNOWN)

    assert len(encode_answer(Nodes(NEIGHBOURS))) <= ROOM_BYTES
    assert len(encode_answer(SlotsStored(("r" * longest_refusal,) * MAX_NAMES, 1 << 60))) <= ROOM_BYTES
    assert len(encode_request(first)) <= ROOM_BYTES


def test_a_pong_is_as_long_as_a_ping():
    assert len(encode_request(Ping(), PING_BYTES)) == len(encode_answer(Pong(1_800_000_000_000))) == PING_BYTES


@pytest.mark.parametrize("least_bytes", [0, 30, 60, 300, 330, 1_000])
def test_a_request_may_be_made_longer_and_means_the_same(least_bytes: int):
    message = encode_request(FindNode(KEY), least_bytes)

    assert least_bytes <= len(message) <= max(least_bytes + 2, 40)
    assert decode_request(message) == FindNode(KEY)


@pytest.mark.parametrize(
    "call",
    [
        ["stun", []],
        [msgspec.Raw(b"\xa1\xff"), []],
        [msgspec.Raw(b"\xdd\xff\xff\xff\xff")],
        ["__init__", []],
        ["ping", 5],
        ["ping", {}],
        ["find_node", []],
        ["find_node", [b"k" * 19]],
        ["find_node", [b"k" * 20 * (MAX_TARGETS + 1)]],
        ["find_value", [KEY]],
        ["find_value", [KEY, b"p" * 33]],
        ["store", [KEY, b"r" * (MAX_RECORD_BYTES + 1)]],
        ["store", [KEY, 7]],
        ["ping", [], "more"],
        [5, []],
        ["ping"],
        "ping",
        None,
    ],
)
def test_a_call_of_the_wrong_name_or_arguments_is_a_wire_error(call):
    with pytest.raises(WireError):
        decode_request(msgspec.msgpack.encode(call))


@given(st.binary(max_size=200))
def test_garbage_is_a_wire_error_or_an_answer_by_chance(data):
    with pytest.raises(WireError):
        decode_request(data)
    for answer in ANSWERS:
        with contextlib.suppress(WireError):
            assert type(decode_answer(data, type(answer))) is type(answer)


@pytest.mark.parametrize("nested", [b"\x91" * 8_000, b"\x92\xa4ping" + b"\x91" * 8_000, b"\x81\x01" * 4_000])
def test_deep_nesting_is_a_wire_error(nested):
    with pytest.raises(WireError):
        decode_request(nested)


def test_the_most_targets_fit_a_datagram_and_the_most_contacts_the_longest_message():
    assert len(encode_request(FindNode(KEY * MAX_TARGETS))) <= ROOM_BYTES
    told = neighbours_of(CONTACTS[:1]) * MAX_TOLD
    assert len(encode_answer(Nodes(told))) <= MAX_MESSAGE_BYTES
