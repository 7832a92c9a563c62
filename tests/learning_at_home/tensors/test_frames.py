"""Tensors to frames and back: exact bytes, all dtypes and layouts, without losing memory under the frames."""

from __future__ import annotations

import gc

import pytest
import torch
import zmq

from learning_at_home.errors import SpecMismatch
from learning_at_home.tensors.frames import DTYPES, from_frames, spec_of, to_frames
from learning_at_home.wire.framing import split_frames
from learning_at_home.wire.messages import CHUNK_BYTES, TensorSpec


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


def test_a_contiguous_tensor_is_not_copied() -> None:
    tensor = torch.zeros(4, 4)
    _, frames = to_frames(tensor)
    tensor[0, 0] = 1.0
    assert bytes(frames[0][:4]) == b"\x00\x00\x80?"


def test_the_frames_keep_the_memory_alive() -> None:
    _, frames = to_frames(torch.full((1000,), 3.0))
    gc.collect()
    assert torch.equal(torch.frombuffer(bytearray(frames[0]), dtype=torch.float32), torch.full((1000,), 3.0))


def test_a_dtype_that_the_wire_does_not_carry_is_refused() -> None:
    with pytest.raises(SpecMismatch, match="int64"):
        spec_of(torch.zeros(3, dtype=torch.int64))


def test_a_received_tensor_may_be_written_to() -> None:
    arrived = from_frames(TensorSpec("float32", (4,)), [zmq.Frame(bytes(16))])
    arrived += 1
    assert arrived.tolist() == [1.0] * 4
