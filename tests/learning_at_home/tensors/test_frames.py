"""Tensors to frames and back: exact bytes, all dtypes and layouts, without losing memory under the frames."""

from __future__ import annotations

import gc
import math

import pytest
import torch
import zmq

from learning_at_home.errors import SpecMismatch
from learning_at_home.tensors.finite import is_finite
from learning_at_home.tensors.frames import DTYPES, from_frames, from_frames_checked, spec_of, to_frames
from learning_at_home.tensors.small import COPIED_BYTES
from learning_at_home.wire.framing import split_frames, take_small
from learning_at_home.wire.messages import CHUNK_BYTES, CODECS, Codec, TensorSpec

FLOATS = [dtype for dtype in DTYPES.values() if dtype.is_floating_point]
WHOLE = [name for name, dtype in DTYPES.items() if not dtype.is_floating_point]


def over_the_wire(tensor: torch.Tensor) -> torch.Tensor:
    spec, frames = to_frames(tensor)
    received = split_frames([(spec,)], [zmq.Frame(bytes(frame)) for frame in frames])[0][0]
    return from_frames(spec, received)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 4), (2, 3, 4), (700, 700)])
def test_a_tensor_arrives_as_it_left(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape).to(dtype)
    arrived = over_the_wire(tensor)
    assert arrived.dtype == dtype
    assert torch.equal(arrived, tensor)


@pytest.mark.parametrize("rows", [CHUNK_BYTES // 256 - 1, CHUNK_BYTES // 256, CHUNK_BYTES // 256 + 1, 10_000])
def test_large_tensors_travel_in_chunks(rows: int) -> None:
    tensor = torch.randn(rows, 64)
    spec, frames = to_frames(tensor)
    assert [len(frame) for frame in frames[:-1]] == [CHUNK_BYTES] * ((spec.num_bytes - 1) // CHUNK_BYTES)
    assert torch.equal(over_the_wire(tensor), tensor)


def test_views_transposes_and_tensors_with_gradients_are_sent_as_they_look() -> None:
    tensor = torch.randn(6, 4, requires_grad=True)
    for view in (tensor.t(), tensor[::2], tensor[:, 1:3], tensor.detach()[3]):
        assert torch.equal(over_the_wire(view), view)


def test_a_small_tensor_is_copied() -> None:
    tensor = torch.zeros(4, 4)
    _, frames = to_frames(tensor)
    tensor[0, 0] = 1.0
    assert bytes(frames[0]) == bytes(64)


def test_a_tensor_that_is_a_negated_view_is_sent_as_its_numbers() -> None:
    for n in (2, 20_000):
        tensor = torch.complex(torch.zeros(n), torch.ones(n)).conj().imag
        assert tensor.is_neg()
        assert torch.equal(over_the_wire(tensor), -torch.ones(n))
        assert is_finite(tensor)


def test_a_large_contiguous_tensor_is_not_copied() -> None:
    tensor = torch.zeros(100, 100)
    _, frames = to_frames(tensor)
    tensor[0, 0] = 1.0
    assert bytes(frames[0][:4]) == b"\x00\x00\x80?"


def test_the_frames_keep_the_memory_alive() -> None:
    _, frames = to_frames(torch.full((1000,), 3.0))
    gc.collect()
    assert torch.equal(torch.frombuffer(bytearray(frames[0]), dtype=torch.float32), torch.full((1000,), 3.0))


def test_a_dtype_that_the_wire_does_not_carry_is_refused() -> None:
    with pytest.raises(SpecMismatch, match="complex64"):
        spec_of(torch.zeros(3, dtype=torch.complex64))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("length", [1, 3_000, CHUNK_BYTES + 5])
def test_whole_numbers_and_bools_are_exact_under_every_codec(name: str, length: int, codec: Codec) -> None:
    least, most = (0, 1) if name == "bool" else (torch.iinfo(DTYPES[name]).min, torch.iinfo(DTYPES[name]).max)
    tensor = torch.tensor([least, most, 0, 1]).repeat(length)[:length].to(DTYPES[name])
    spec, frames = to_frames(tensor, codec)
    received = split_frames([(spec,)], [zmq.Frame(bytes(frame)) for frame in frames], codec=codec)[0][0]
    for arrived in (from_frames(spec, received, codec), from_frames_checked(spec, received, codec)[0]):
        assert arrived.dtype == tensor.dtype
        assert torch.equal(arrived, tensor)
    assert from_frames_checked(spec, received, codec)[1]


@pytest.mark.parametrize("length", [1, 40_000, CHUNK_BYTES + 1])
def test_any_byte_but_zero_is_a_true_bool(length: int) -> None:
    """Of a bool that is neither 0 nor 1 torch would make what it likes."""
    sent = bytes([0, 2, 255, 1])[-length:] + bytes(max(0, length - 4))
    frames = [bytearray(sent[start : start + CHUNK_BYTES]) for start in range(0, length, CHUNK_BYTES)]
    spec = TensorSpec("bool", (length,))
    for arrived in (from_frames(spec, frames), from_frames_checked(spec, frames)[0]):
        assert arrived.dtype == torch.bool
        assert arrived.view(torch.uint8).max() == 1
        assert arrived.sum() == sum(byte != 0 for byte in sent)


def test_a_received_tensor_may_be_written_to() -> None:
    arrived = from_frames(TensorSpec("float32", (4,)), [zmq.Frame(bytes(16))])
    arrived += 1
    assert arrived.tolist() == [1.0] * 4


def lying_at(offset: int, content: bytes) -> memoryview:
    """A frame whose bytes begin `offset` bytes after a multiple of 64, as small ones do inside ZeroMQ's buffers."""
    memory = torch.empty(len(content) + 128, dtype=torch.uint8)
    start = -memory.data_ptr() % 64 + offset
    frame = memory.numpy().data[start : start + len(content)]
    frame[:] = content
    return frame


def address(buffer: memoryview) -> int:
    return torch.frombuffer(buffer, dtype=torch.uint8).data_ptr()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_one_aligned_frame_becomes_the_memory_of_the_tensor(dtype: torch.dtype) -> None:
    tensor = torch.randn(140, 140).to(dtype)
    spec, [frame] = to_frames(tensor)
    received = lying_at(8, bytes(frame))
    arrived = from_frames(spec, [received])
    assert torch.equal(arrived, tensor)
    assert arrived.data_ptr() == address(received)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_frame_that_lies_anywhere_is_copied_to_an_aligned_place(dtype: torch.dtype) -> None:
    tensor = torch.randn(7, 3).to(dtype)
    spec, [frame] = to_frames(tensor)
    arrived = from_frames(spec, [lying_at(dtype.itemsize - 1, bytes(frame))])
    assert torch.equal(arrived, tensor)
    assert arrived.data_ptr() % dtype.itemsize == 0


def test_the_tensor_keeps_the_memory_of_its_frame_alive() -> None:
    spec, [sent] = to_frames(torch.full((10_000,), 3.0))
    arrived = from_frames(spec, [zmq.Frame(bytes(sent))])[1:]
    gc.collect()
    assert torch.equal(arrived, torch.full((9_999,), 3.0))


def test_frames_that_cannot_be_written_to_are_copied() -> None:
    for num_bytes in (16, 2 * COPIED_BYTES):
        read_only = bytes(num_bytes)
        arrived = from_frames(TensorSpec("float32", (num_bytes // 4,)), [read_only])
        arrived += 1
        assert read_only == bytes(num_bytes)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("num_elements", [1, COPIED_BYTES // 4, COPIED_BYTES // 4 + 1, CHUNK_BYTES + 77])
@pytest.mark.parametrize("wrong", [None, math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_is_noticed(wrong: float | None, num_elements: int, dtype: torch.dtype) -> None:
    tensor = torch.randn(num_elements).to(dtype)
    for position in (0, num_elements // 2, num_elements - 1):
        changed = tensor.clone()
        if wrong is not None:
            changed[position] = wrong
        spec, frames = to_frames(changed)
        arrived, finite = from_frames_checked(spec, [zmq.Frame(bytes(frame)) for frame in frames])
        assert finite is (wrong is None)
        assert torch.equal(arrived, changed) or math.isnan(wrong or 0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("num_elements", [3, COPIED_BYTES // 4 + 1, CHUNK_BYTES])
def test_numbers_whose_sum_overflows_are_finite(num_elements: int, dtype: torch.dtype) -> None:
    spec, frames = to_frames(torch.full((num_elements,), torch.finfo(dtype).max, dtype=dtype))
    assert from_frames_checked(spec, [zmq.Frame(bytes(frame)) for frame in frames])[1]


def test_zeros_without_memory_are_sent_as_zeros() -> None:
    for n in (3, 20_000):
        zeros = torch._efficientzerotensor((n,))
        assert zeros.data_ptr() == 0
        assert torch.equal(over_the_wire(zeros), torch.zeros(n))
        assert is_finite(zeros)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_small_tensors_arrive_by_the_header_as_they_do_by_frames(dtype: torch.dtype, codec: Codec) -> None:
    spec, frames = to_frames(torch.randn(3, 100).to(dtype), codec)
    data, left = take_small(frames)
    assert not left
    [[by_header]] = split_frames([(spec,)], [], codec=codec, data=data)
    [[by_frames]] = split_frames([(spec,)], [bytearray(frame) for frame in frames], codec=codec)
    assert torch.equal(from_frames(spec, by_header, codec), from_frames(spec, by_frames, codec))
    arrived, finite = from_frames_checked(spec, by_header, codec)
    assert finite
    arrived += 1
