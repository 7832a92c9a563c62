"""The codec: golden bytes, round trips, truncation at every offset, garbage, and lies about sizes."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning_at_home.errors import WireError
from learning_at_home.schema import DtypeName
from learning_at_home.wire.framing import decode_caller, decode_node, encode, split_frames, take_small
from learning_at_home.wire.messages import (
    CHUNK_BYTES,
    CODECS,
    MAX_DATA_BYTES,
    MAX_HEADER_BYTES,
    MAX_WORK_PER_REQUEST,
    SMALL_BYTES,
    Answers,
    CallerMessage,
    Codec,
    Failure,
    Greeting,
    NodeMessage,
    Reply,
    Request,
    TensorSpec,
    Welcome,
    Work,
    wire_bytes,
)

GOLDEN = Path(__file__).parents[2] / "data" / "wire-v5.json"
KEY = bytes(range(32))
ROWS = TensorSpec("float32", (2, 3))
CALLER_EXAMPLES: dict[str, CallerMessage] = {
    "greeting": Greeting((5, 5), KEY, "learning-at-home/0.1.0"),
    "request-forward": Request("digits", 1_790_000_000_000, 10_000, (Work(7, "ffn0.3.1", "forward", (ROWS,)),)),
    "request-backward": Request(
        "digits",
        1_790_000_000_000,
        10_000,
        (Work(8, "ffn0.3.1", "backward", (ROWS, ROWS)), Work(9, "ffn0.0.2", "backward", (ROWS, ROWS))),
    ),
    "request-retried": Request(
        "digits",
        1_790_000_000_000,
        7_500,
        (Work(8, "ffn0.3.1", "backward", (ROWS, ROWS)),),
        waited_ms=2_500,
        codec="int8",
        reply_codec="bfloat16",
    ),
    "request-gradient": Request("digits", 1_790_000_000_000, 10_000, (Work(10, "ffn0.3.1", "gradient", (ROWS, ROWS)),)),
    "request-evaluation": Request(
        "digits",
        1_790_000_000_000,
        10_000,
        (Work(11, "ffn0.3.1", "eval_forward", (ROWS,)), Work(12, "ffn0.3.1", "eval_gradient", (ROWS, ROWS))),
    ),
    "request-several-tensors": Request(
        "digits",
        1_790_000_000_000,
        10_000,
        (Work(13, "ffn0.3.1", "forward", (ROWS, TensorSpec("bool", (2, 3)), TensorSpec("int64", (2,)))),),
        codec="float16",
    ),
    "request-small": Request(
        "digits", 1_790_000_000_000, 10_000, (Work(7, "ffn0.3.1", "forward", (ROWS,)),), data=bytes(range(24))
    ),
}
NODE_EXAMPLES: dict[str, NodeMessage] = {
    "welcome": Welcome(5, KEY, "learning-at-home/0.1.0", 1_790_000_000_123, 4_096, 67_108_864, CODECS),
    "reply": Reply(7, (ROWS,), 120, 450, 33, 1.5),
    "reply-compressed": Reply(7, (ROWS,), 120, 450, 33, 1.5, "float16"),
    "reply-small": Reply(7, (ROWS,), 120, 450, 33, 1.5, data=bytes(range(24))),
    "failure": Failure(9, 201, "this node does not host ffn0.0.2"),
    "failure-of-all": Failure(None, 203, "the queue is full", 250),
    "answers": Answers((Reply(7, (ROWS,), 120, 450, 33, 1.5, data=bytes(24)), Failure(9, 203, "full", 250))),
}
EXAMPLES = {**CALLER_EXAMPLES, **NODE_EXAMPLES}


def decode(name: str, header: bytes) -> object:
    return decode_caller(header) if name in CALLER_EXAMPLES else decode_node(header)


def test_the_bytes_of_version_5_never_change() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert {name: encode(message).hex() for name, message in EXAMPLES.items()} == golden
    assert {name: decode(name, bytes.fromhex(text)) for name, text in golden.items()} == EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_header_cut_anywhere_is_a_wire_error(name: str) -> None:
    header = encode(EXAMPLES[name])
    for length in range(len(header)):
        with pytest.raises(WireError):
            decode(name, header[:length])
    with pytest.raises(WireError):
        decode(name, header + b"\0")


@given(st.binary(max_size=200))
def test_garbage_is_a_wire_error_and_nothing_else(data: bytes) -> None:
    for decoder in (decode_caller, decode_node):
        with pytest.raises(WireError):
            decoder(data)


@given(st.sampled_from(sorted(EXAMPLES)), st.data())
def test_a_changed_byte_is_another_message_or_a_wire_error(name: str, data: st.DataObject) -> None:
    header = bytearray(encode(EXAMPLES[name]))
    position = data.draw(st.integers(0, len(header) - 1))
    header[position] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        decode(name, bytes(header))


@pytest.mark.parametrize("data", [b"\x91" * 5_000 + b"\xc0", b"\x81\xa4type" * 3_000])
def test_deep_nesting_is_a_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        decode_caller(data)


def test_unknown_keys_and_types_are_refused() -> None:
    header = msgspec.msgpack.decode(encode(CALLER_EXAMPLES["greeting"]))
    for changed in ({**header, "extra": 1}, {**header, "type": "pickle"}, {**header, "versions": [1]}):
        with pytest.raises(WireError):
            decode_caller(msgspec.msgpack.encode(changed))


@pytest.mark.parametrize("entry", [[], [7, "a.1", "forward"], [7, "a.1", "forward", [], 1], [7, "a.1", "evaluate", []]])
def test_work_of_another_form_is_refused(entry: list[object]) -> None:
    header = msgspec.msgpack.decode(encode(CALLER_EXAMPLES["request-forward"]))
    with pytest.raises(WireError):
        decode_caller(msgspec.msgpack.encode({**header, "work": [entry]}))


@pytest.mark.parametrize("key, value", [("codec", "zip"), ("reply_codec", 8), ("waited_ms", -1), ("waited_ms", None)])
def test_codecs_and_times_that_do_not_exist_are_refused(key: str, value: object) -> None:
    header = msgspec.msgpack.decode(encode(CALLER_EXAMPLES["request-retried"]))
    with pytest.raises(WireError):
        decode_caller(msgspec.msgpack.encode({**header, key: value}))


def test_an_answer_with_more_tensors_than_allowed_is_refused() -> None:
    assert isinstance(decode_node(encode(Reply(7, (ROWS,) * 16, 0, 0, 0, 0.0))), Reply)
    for specs in ((ROWS,) * 17, (TensorSpec("float32", (1,) * 9),), (TensorSpec("float32", (-1,)),)):
        with pytest.raises(WireError):
            decode_node(encode(Reply(7, specs, 0, 0, 0, 0.0)))


@pytest.mark.parametrize(
    "request_",
    [
        Request("digits", 0, 1_000, ()),
        Request("digits", 0, 0, (Work(1, "a.1", "forward", ()),)),
        Request("digits", 0, 3_600_001, (Work(1, "a.1", "forward", ()),)),
        Request("digits", 0, 1_000, tuple(Work(n, "a.1", "forward", ()) for n in range(MAX_WORK_PER_REQUEST + 1))),
        Request("digits", 0, 1_000, (Work(1, "a.1", "forward", (ROWS,) * 17),)),
        Request("digits", 0, 1_000, (Work(1, "a.1", "forward", (TensorSpec("float32", (1,) * 9),)),)),
        Request("digits", 0, 1_000, (Work(1, "a.1", "forward", (TensorSpec("float32", (-1,)),)),)),
        Request("digits", 0, 1_000, (Work(1, "a.1", "forward", (TensorSpec("float32", (1 << 41,)),)),)),
    ],
)
def test_a_request_out_of_bounds_is_refused(request_: Request) -> None:
    with pytest.raises(WireError):
        decode_caller(encode(request_))


def test_a_header_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(WireError, match="262,144"):
        decode_caller(b"\0" * (MAX_HEADER_BYTES + 1))


@pytest.mark.parametrize(
    "num_elements, sizes",
    [(0, []), (1, [4]), (CHUNK_BYTES // 4, [CHUNK_BYTES]), (CHUNK_BYTES // 4 + 1, [CHUNK_BYTES, 4])],
)
def test_frames_follow_from_the_header_alone(num_elements: int, sizes: list[int]) -> None:
    spec = TensorSpec("float32", (num_elements,))
    frames = [bytes(size) for size in sizes]
    assert wire_bytes(spec) == sum(sizes)
    assert split_frames([(spec,)], frames) == [[frames]]
    for lie in ([*frames, b"\x00"], frames[:-1] if frames else [b""], [*frames[:-1], b"\0" * 3]):
        with pytest.raises(WireError):
            split_frames([(spec,)], lie)


def test_frames_are_dealt_to_groups_and_tensors_in_order() -> None:
    one, two = TensorSpec("float32", (1,)), TensorSpec("float64", (1,))
    assert split_frames([(one, two), (), (one,)], [b"aaaa", b"bbbbbbbb", b"cccc"]) == [
        [[b"aaaa"], [b"bbbbbbbb"]],
        [],
        [[b"cccc"]],
    ]


def test_frames_of_other_sizes_in_the_middle_are_refused() -> None:
    spec = TensorSpec("float32", (CHUNK_BYTES // 2,))
    assert split_frames([(spec,)], [bytes(CHUNK_BYTES), bytes(CHUNK_BYTES)])
    with pytest.raises(WireError, match="1,048,572, 1,048,580 bytes"):
        split_frames([(spec,)], [bytes(CHUNK_BYTES - 4), bytes(CHUNK_BYTES + 4)])


def test_more_bytes_than_allowed_are_refused_by_the_header_alone() -> None:
    with pytest.raises(WireError, match="allowed"):
        split_frames([(TensorSpec("float64", (1 << 40, 1 << 40)),)], [])
    one = TensorSpec("float32", (1,))
    with pytest.raises(WireError, match="allowed"):
        split_frames([(one, one), (one,)], [bytes(4)] * 3, limit_bytes=11)
    assert split_frames([(one, one), (one,)], [bytes(4)] * 3, limit_bytes=12)


@pytest.mark.parametrize("codec", CODECS)
def test_a_small_message_cannot_ask_for_a_large_tensor(codec: Codec) -> None:
    """What counts is the larger of the bytes that came and those that they become."""
    spec = TensorSpec("float64", (1_000,))
    frames = [bytes(wire_bytes(spec, codec))]
    assert split_frames([(spec,)], frames, 8_000, codec)
    with pytest.raises(WireError, match="allowed"):
        split_frames([(spec,)], frames, 7_999, codec)
    tiny = TensorSpec("float16", (1,))
    with pytest.raises(WireError, match="allowed"):
        split_frames([(tiny,)], [bytes(wire_bytes(tiny, "int8"))], 4, "int8")


@pytest.mark.parametrize(
    "num_elements, sizes",
    [
        (0, {"none": 0, "float16": 0, "bfloat16": 0, "int8": 0}),
        (1, {"none": 4, "float16": 2, "bfloat16": 2, "int8": 5}),
        (128, {"none": 512, "float16": 256, "bfloat16": 256, "int8": 132}),
        (129, {"none": 516, "float16": 258, "bfloat16": 258, "int8": 137}),
    ],
)
def test_bytes_follow_from_the_header_alone(num_elements: int, sizes: dict[Codec, int]) -> None:
    spec = TensorSpec("float32", (1, num_elements))
    assert {codec: wire_bytes(spec, codec) for codec in CODECS} == sizes
    for codec, size in sizes.items():
        assert split_frames([(spec,)], [bytes(size)] if size else [], codec=codec)
        with pytest.raises(WireError):
            split_frames([(spec,)], [bytes(size + 1)], codec=codec)


@pytest.mark.parametrize(
    "dtype, size", [("int64", 8), ("int32", 4), ("int16", 2), ("int8", 1), ("uint8", 1), ("bool", 1)]
)
def test_whole_numbers_travel_as_they_are_under_every_codec(dtype: DtypeName, size: int) -> None:
    spec = TensorSpec(dtype, (3, 5))
    assert {wire_bytes(spec, codec) for codec in CODECS} == {15 * size}
    for codec in CODECS:
        assert split_frames([(spec, ROWS)], [bytes(15 * size), bytes(wire_bytes(ROWS, codec))], codec=codec)
        with pytest.raises(WireError):
            split_frames([(spec,)], [bytes(15 * size + 1)], codec=codec)


def test_small_tensors_travel_in_the_header_and_are_cut_apart() -> None:
    sent: list[bytes | memoryview] = [b"\1" * 24, memoryview(b"\2" * 24)]
    data, left = take_small(sent)
    assert (data, left) == (b"\1" * 24 + b"\2" * 24, ())
    groups = split_frames([(ROWS, ROWS), (TensorSpec("float32", (0, 3)),)], [], data=data)
    as_bytes = [[[bytes(piece) for piece in tensor] for tensor in group] for group in groups]
    assert as_bytes == [[[b"\1" * 24], [b"\2" * 24]], [[]]]


@pytest.mark.parametrize(
    "sizes, in_the_header",
    [
        ([], True),
        ([SMALL_BYTES] * 8, True),
        ([SMALL_BYTES + 1], False),
        ([SMALL_BYTES] * 9, False),
        ([1, 1 << 20], False),
    ],
)
def test_what_is_large_or_too_much_travels_in_frames(sizes: list[int], in_the_header: bool) -> None:
    frames = [bytes(size) for size in sizes]
    data, left = take_small(frames)
    assert data == (b"".join(frames) if in_the_header else b"")
    assert list(left) == ([] if in_the_header else frames)


@pytest.mark.parametrize("num_bytes", [1, 23, 25, 48])
@pytest.mark.parametrize("codec", CODECS)
def test_data_of_another_size_than_announced_is_a_wire_error(num_bytes: int, codec: Codec) -> None:
    assert num_bytes != wire_bytes(ROWS, codec)
    with pytest.raises(WireError):
        split_frames([(ROWS,)], [], codec=codec, data=bytes(num_bytes))


@pytest.mark.parametrize("shape", [(1 << 40,) * 8, (MAX_DATA_BYTES,), (0, 3)])
def test_shapes_that_data_cannot_hold_are_a_wire_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(WireError):
        split_frames([(TensorSpec("float32", shape), ROWS)], [], data=bytes(MAX_DATA_BYTES))


def test_data_and_frames_together_are_a_wire_error() -> None:
    with pytest.raises(WireError):
        split_frames([(ROWS,)], [bytes(24)], data=bytes(24))


def test_more_data_than_a_header_may_hold_is_a_wire_error() -> None:
    decode_node(encode(Reply(7, (ROWS,), 0, 0, 0, 0.0, data=bytes(MAX_DATA_BYTES))))
    with pytest.raises(WireError):
        decode_node(encode(Reply(7, (ROWS,), 0, 0, 0, 0.0, data=bytes(MAX_DATA_BYTES + 1))))
