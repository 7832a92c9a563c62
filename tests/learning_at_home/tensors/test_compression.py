"""The codecs: their error bounds on all kinds of numbers, their exact bytes, and what strangers may send."""

from __future__ import annotations

import math
import struct

import pytest
import torch
import zmq
from hypothesis import given
from hypothesis import strategies as st

from learning_at_home.errors import NonFiniteTensor, WireError
from learning_at_home.project import FLOAT_BYTES
from learning_at_home.tensors import compression
from learning_at_home.tensors.compression import PIECE_ELEMENTS, decode
from learning_at_home.tensors.frames import DTYPES, from_frames_checked, to_frames
from learning_at_home.wire.framing import split_frames
from learning_at_home.wire.messages import BLOCK_ELEMENTS, CHUNK_BYTES, Codec, TensorSpec, wire_bytes

CODECS: tuple[Codec, ...] = ("float16", "bfloat16", "int8")
LIMITS: dict[Codec, float] = {"float16": 65_504.0, "bfloat16": 3.3e38, "int8": 3.4e38}
LEAST_MAXIMUM = 2.0**-119  # of a block, as the page says
ROUNDED = 1.0001  # for float32's own rounding on the way

# Of the dtypes themselves, relative and, near zero, absolute.
HALF_UNITS: dict[torch.dtype, tuple[float, float]] = {
    torch.float64: (2.0**-53, 0.0),
    torch.float32: (2.0**-24, 2.0**-150),
    torch.float16: (2.0**-11, 2.0**-25),
    torch.bfloat16: (2.0**-8, 2.0**-134),
}


def over_the_wire(tensor: torch.Tensor, codec: Codec) -> tuple[torch.Tensor, bool]:
    spec, frames = to_frames(tensor, codec)
    received = split_frames([(spec,)], [zmq.Frame(bytes(frame)) for frame in frames], codec=codec)[0][0]
    return from_frames_checked(spec, received, codec)


def allowed_errors(tensor: torch.Tensor, codec: Codec) -> torch.Tensor:
    """The bounds of docs/wire-format.md for each number."""
    numbers = tensor.detach().double().reshape(-1)
    if codec == "int8":
        largest = [block.abs().max().clamp_min(LEAST_MAXIMUM) for block in numbers.split(BLOCK_ELEMENTS)]
        bounds = torch.stack(largest).repeat_interleave(BLOCK_ELEMENTS)[: len(numbers)] / 254
    else:
        relative, absolute = HALF_UNITS[DTYPES[codec]]
        bounds = (numbers.abs() * relative).clamp_min(absolute)
    relative, absolute = HALF_UNITS[tensor.dtype]
    return bounds * ROUNDED + ((numbers.abs() + bounds) * relative).clamp_min(absolute)


def holds_its_bound(tensor: torch.Tensor, codec: Codec) -> bool:
    arrived, finite = over_the_wire(tensor, codec)
    assert finite
    assert (arrived.dtype, arrived.shape) == (tensor.dtype, tensor.shape)
    errors = (arrived.double() - tensor.detach().double()).abs().reshape(-1)
    return bool((errors <= allowed_errors(tensor, codec)).all())


def with_an_outlier(numbers: torch.Tensor) -> torch.Tensor:
    numbers[17] = 60_000.0
    return numbers


KINDS_OF_NUMBERS = {
    "normal": torch.randn(3 * BLOCK_ELEMENTS),
    "zeros": torch.zeros(2 * BLOCK_ELEMENTS),
    "a constant": torch.full((BLOCK_ELEMENTS,), -0.1),
    "denormal": torch.randn(2 * BLOCK_ELEMENTS) * 1e-40,
    "hardly a number": torch.full((BLOCK_ELEMENTS,), 2.0**-149),
    "about the least scale": torch.randn(2 * BLOCK_ELEMENTS) * LEAST_MAXIMUM,
    "one outlier": with_an_outlier(torch.randn(2 * BLOCK_ELEMENTS)),
    "between two steps": torch.arange(-127.0, 128.0) + 0.5,
    "all scales": torch.randn(40, BLOCK_ELEMENTS) * torch.logspace(-30, 4, 40).unsqueeze(1),
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", [DTYPES[name] for name in FLOAT_BYTES], ids=str)
@pytest.mark.parametrize("numbers", KINDS_OF_NUMBERS.values(), ids=KINDS_OF_NUMBERS.keys())
def test_every_number_arrives_within_its_bound(numbers: torch.Tensor, dtype: torch.dtype, codec: Codec) -> None:
    assert holds_its_bound(numbers.to(dtype), codec)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_numbers_that_a_codec_takes_arrive_as_finite_ones(dtype: torch.dtype, codec: Codec) -> None:
    numbers = torch.full((BLOCK_ELEMENTS + 1,), LIMITS[codec], dtype=dtype)
    numbers[::2] *= -1
    assert holds_its_bound(numbers, codec)


@given(
    st.sampled_from(CODECS),
    st.sampled_from(sorted(FLOAT_BYTES)),
    st.lists(st.floats(-60_000, 60_000, width=32), min_size=1, max_size=3 * BLOCK_ELEMENTS),
)
def test_any_numbers_arrive_within_their_bounds(codec: Codec, dtype: str, numbers: list[float]) -> None:
    assert holds_its_bound(torch.tensor(numbers, dtype=DTYPES[dtype]), codec)


@given(st.lists(st.floats(-3.3e38, 3.3e38), min_size=1, max_size=2 * BLOCK_ELEMENTS))
def test_int8_takes_numbers_of_any_size(numbers: list[float]) -> None:
    assert holds_its_bound(torch.tensor(numbers, dtype=torch.float64), "int8")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "num_elements",
    [1, BLOCK_ELEMENTS - 1, BLOCK_ELEMENTS + 1, PIECE_ELEMENTS, PIECE_ELEMENTS + 1, CHUNK_BYTES + BLOCK_ELEMENTS + 3],
)
def test_lengths_that_are_no_multiple_of_anything_arrive(num_elements: int, codec: Codec) -> None:
    assert holds_its_bound(torch.randn(num_elements), codec)


@pytest.mark.parametrize("codec", CODECS)
def test_empty_tensors_transposes_and_tensors_with_gradients_are_sent_as_they_look(codec: Codec) -> None:
    assert over_the_wire(torch.empty(0, 5), codec)[0].shape == (0, 5)
    tensor = torch.randn(130, 7, requires_grad=True)
    for view in (tensor, tensor.t(), tensor[::2, 1], tensor[3, 3]):
        assert holds_its_bound(view, codec)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 1e39, -1e39])
@pytest.mark.parametrize("position", [0, BLOCK_ELEMENTS, PIECE_ELEMENTS + 7])
def test_what_would_not_arrive_as_a_finite_number_is_not_sent(position: int, wrong: float, codec: Codec) -> None:
    tensor = torch.randn(PIECE_ELEMENTS + 8, dtype=torch.float64)
    tensor[position] = wrong
    with pytest.raises(NonFiniteTensor, match=codec):
        to_frames(tensor, codec)


def test_float16_refuses_what_is_beyond_its_range() -> None:
    to_frames(torch.tensor([65_519.0]), "float16")
    with pytest.raises(NonFiniteTensor, match="too large for codec float16"):
        to_frames(torch.tensor([65_520.0]), "float16")


def test_int8_refuses_what_a_rounded_scale_could_make_infinite() -> None:
    to_frames(torch.tensor([3.4e38]), "int8")
    with pytest.raises(NonFiniteTensor, match="too large for codec int8"):
        to_frames(torch.tensor([3.4028e38]), "int8")


def test_many_large_numbers_are_fine_though_their_sum_is_not() -> None:
    assert holds_its_bound(torch.full((PIECE_ELEMENTS + 5,), 60_000.0), "float16")
    assert holds_its_bound(torch.full((PIECE_ELEMENTS + 5,), 3e38), "bfloat16")
    assert holds_its_bound(torch.full((PIECE_ELEMENTS + 5,), 3e38), "int8")


def test_the_bytes_of_the_codecs_never_change() -> None:
    tensor = torch.tensor([1.0, -0.5, 127.0, 0.4])
    assert bytes(to_frames(tensor, "float16")[1][0]).hex() == "003c00b8f0576636"
    assert bytes(to_frames(tensor, "bfloat16")[1][0]).hex() == "803f00bffe42cd3e"
    assert bytes(to_frames(tensor, "int8")[1][0]).hex() == struct.pack("<f4b", 1.0, 1, 0, 127, 0).hex()
    two_blocks = torch.cat([torch.full((BLOCK_ELEMENTS,), 254.0), torch.tensor([-127.0])])
    assert bytes(to_frames(two_blocks, "int8")[1][0]) == struct.pack("<2f128b1b", 2.0, 1.0, *[127] * 128, -127)


@pytest.mark.parametrize("codec, num_bytes", [("float16", 8_000_000), ("bfloat16", 8_000_000), ("int8", 4_125_000)])
def test_compressed_tensors_travel_in_chunks(codec: Codec, num_bytes: int) -> None:
    spec, frames = to_frames(torch.ones(2_000, 2_000), codec)
    assert sum(map(len, frames)) == wire_bytes(spec, codec) == num_bytes
    assert {len(frame) for frame in frames[:-1]} == {CHUNK_BYTES}


# What strangers send.


@pytest.mark.parametrize("dtype", FLOAT_BYTES)
@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_a_scale_that_is_no_number_makes_a_tensor_that_is_not_finite(scale: float, dtype: str) -> None:
    spec = TensorSpec(dtype, (BLOCK_ELEMENTS + 2,))  # type: ignore[arg-type]
    sent = struct.pack(f"<2f{BLOCK_ELEMENTS + 2}b", 1.0, scale, *[1] * (BLOCK_ELEMENTS + 2))
    _, finite = from_frames_checked(spec, [zmq.Frame(sent)], "int8")
    assert not finite


def test_a_scale_is_judged_by_the_numbers_it_makes() -> None:
    for dtype, finite in (("float32", True), ("float64", True), ("float16", False)):
        spec = TensorSpec(dtype, (2,))  # type: ignore[arg-type]
        tensor, answer = from_frames_checked(spec, [zmq.Frame(struct.pack("<f2b", 1e36, -128, 3))], "int8")
        assert answer is bool(tensor.isfinite().all()) is finite
    zero_times_much = TensorSpec("float32", (2,)), [zmq.Frame(struct.pack("<f2b", 3.4e38, 0, 1))]
    assert from_frames_checked(*zero_times_much, "int8")[1]
    assert not from_frames_checked(TensorSpec("float32", (1,)), [zmq.Frame(struct.pack("<fb", 3.4e38, 2))], "int8")[1]


def test_a_finite_number_beyond_the_dtype_is_not_finite() -> None:
    sent = bytes(torch.tensor([1e30], dtype=torch.bfloat16).view(torch.uint8).tolist())
    assert from_frames_checked(TensorSpec("float32", (1,)), [zmq.Frame(sent)], "bfloat16")[1]
    assert not from_frames_checked(TensorSpec("float16", (1,)), [zmq.Frame(sent)], "bfloat16")[1]


@given(st.sampled_from(CODECS), st.sampled_from(sorted(FLOAT_BYTES)), st.integers(1, 300), st.data())
def test_any_bytes_of_the_right_length_are_a_tensor(codec: Codec, dtype: str, n: int, data: st.DataObject) -> None:
    spec = TensorSpec(dtype, (n,))  # type: ignore[arg-type]
    size = wire_bytes(spec, codec)
    sent = data.draw(st.binary(min_size=size, max_size=size))
    for frame in (zmq.Frame(sent), zmq.Frame(bytes(sent))):
        tensor, finite = from_frames_checked(spec, [frame], codec)
        assert tensor.shape == (n,)
        assert finite is bool(torch.isfinite(tensor).all())


@pytest.mark.parametrize("codec", CODECS)
def test_bytes_cut_anywhere_are_a_wire_error(codec: Codec) -> None:
    spec, [frame] = to_frames(torch.randn(BLOCK_ELEMENTS + 1), codec)
    for length in range(len(frame)):
        with pytest.raises(WireError):
            split_frames([(spec,)], [bytes(frame[:length])], codec=codec)
        with pytest.raises(WireError):
            decode(spec, [memoryview(frame)[:length]], codec)
    with pytest.raises(WireError):
        split_frames([(spec,)], [bytes(frame) + b"\0"], codec=codec)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("offset", [1, 2, 3])
def test_frames_that_lie_anywhere_are_read(offset: int, codec: Codec) -> None:
    tensor = torch.randn(2 * BLOCK_ELEMENTS + 5)
    spec, [frame] = to_frames(tensor, codec)
    moved = memoryview(bytearray(bytes(offset) + bytes(frame)))[offset:]
    expected, _ = decode(spec, [memoryview(bytearray(frame))], codec)
    arrived, finite = decode(spec, [moved], codec)
    assert finite
    assert torch.equal(arrived, expected)


@pytest.mark.parametrize("codec", CODECS)
def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch, codec: Codec) -> None:
    tensor = torch.randn(5 * BLOCK_ELEMENTS + 9)
    sent, arrived = [bytes(frame) for frame in to_frames(tensor, codec)[1]], over_the_wire(tensor, codec)[0]
    monkeypatch.setattr(compression, "PIECE_ELEMENTS", 2 * BLOCK_ELEMENTS)
    assert [bytes(frame) for frame in to_frames(tensor, codec)[1]] == sent
    assert torch.equal(over_the_wire(tensor, codec)[0], arrived)
