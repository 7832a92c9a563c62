"""The datagrams' codec: bytes from the network raise WireError and nothing else."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning_at_home.dht.messages import (
    HEADER_BYTES,
    MAX_DATAGRAM_BYTES,
    MAX_PAGE_BYTES,
    Answer,
    FindNode,
    FindValue,
    Nodes,
    Ping,
    Pong,
    Request,
    Store,
    Stored,
    Values,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
    split_datagram,
)
from learning_at_home.dht.records import MAX_RECORD_BYTES
from learning_at_home.errors import WireError

ME, KEY, MESSAGE_ID = b"m" * 20, b"k" * 20, b"i" * 20
NEIGHBOURS = tuple((bytes([number]) * 20, "2001:db8:1111:2222:3333:4444:5555:6666", 65_535) for number in range(20))
REQUESTS: list[Request] = [
    Ping(ME),
    Ping(b""),
    FindNode(ME, KEY),
    FindValue(ME, KEY, b""),
    FindValue(ME, KEY, b"p" * 32),
    Store(ME, KEY, b"record"),
]
ANSWERS: list[Answer] = [
    Pong(ME, 1),
    Nodes(ME, NEIGHBOURS),
    Values(ME, (b"one", b"two"), b"p" * 32, NEIGHBOURS),
    Stored(ME, "", 1),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_request_survives_its_bytes_and_is_garbage_when_cut_off_anywhere(request_: Request):
    datagram = encode_request(MESSAGE_ID, request_)
    kind, message_id, payload = split_datagram(datagram)

    assert (kind, message_id, decode_request(payload)) == (b"\x00", MESSAGE_ID, request_)
    for end in range(len(payload)):
        with pytest.raises(WireError):
            decode_request(payload[:end])


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_survives_its_bytes_and_is_garbage_when_cut_off_anywhere(answer: Answer):
    kind, message_id, payload = split_datagram(encode_answer(MESSAGE_ID, answer))

    assert (kind, message_id, decode_answer(payload, type(answer))) == (b"\x01", MESSAGE_ID, answer)
    for end in range(len(payload)):
        with pytest.raises(WireError):
            decode_answer(payload[:end], type(answer))


def test_an_answer_may_grow():
    grown = msgspec.msgpack.encode([ME, 5, "what a later version adds"])

    assert decode_answer(grown, Pong) == Pong(ME, 5)


def test_what_is_allowed_fits_a_datagram():
    full_page = Values(ME, (b"r" * MAX_RECORD_BYTES, b"r" * (MAX_PAGE_BYTES - MAX_RECORD_BYTES)), b"p" * 32, NEIGHBOURS)

    assert len(encode_answer(MESSAGE_ID, full_page)) <= MAX_DATAGRAM_BYTES
    assert len(encode_request(MESSAGE_ID, Store(ME, KEY, b"r" * MAX_RECORD_BYTES))) <= MAX_DATAGRAM_BYTES


@pytest.mark.parametrize(
    "call",
    [
        ["stun", []],
        [msgspec.Raw(b"\xa1\xff"), []],
        [msgspec.Raw(b"\xdd\xff\xff\xff\xff")],
        ["__init__", [ME]],
        ["ping", []],
        ["ping", [5]],
        ["ping", [b"short"]],
        ["ping", {"sender": ME}],
        ["find_node", [ME]],
        ["find_node", [ME, b"k" * 21]],
        ["find_value", [ME, KEY]],
        ["find_value", [ME, KEY, b"p" * 33]],
        ["store", [ME, KEY, b"r" * (MAX_RECORD_BYTES + 1)]],
        ["store", [ME, KEY, 7]],
        ["ping", [ME], "more"],
        [5, [ME]],
        ["ping"],
        "ping",
        None,
    ],
)
def test_a_call_of_the_wrong_name_or_arguments_is_a_wire_error(call):
    with pytest.raises(WireError):
        decode_request(msgspec.msgpack.encode(call))


@given(st.binary(max_size=200))
def test_garbage_is_a_wire_error(data):
    with pytest.raises(WireError):
        decode_request(data)
    for answer in ANSWERS:
        with pytest.raises(WireError):
            decode_answer(data, type(answer))


@pytest.mark.parametrize("nested", [b"\x91" * 8_000, b"\x92\xa4ping" + b"\x91" * 8_000, b"\x81\x01" * 4_000])
def test_deep_nesting_is_a_wire_error(nested):
    with pytest.raises(WireError):
        decode_request(nested)


@pytest.mark.parametrize(
    "datagram", [b"", b"\x00", b"\x00" * HEADER_BYTES, b"\x02" * 40, b"\x00" * (MAX_DATAGRAM_BYTES + 1)]
)
def test_what_is_no_datagram_of_ours_is_a_wire_error(datagram):
    with pytest.raises(WireError):
        split_datagram(datagram)
