"""torch tensors to the little-endian frames of the wire and back, without needless copies.

A tensor leaves as views of its own memory, in chunks; the views keep it alive until ZeroMQ has sent
them. It must not be written to before that: callers hand over tensors that nobody else changes.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learning_at_home.errors import SpecMismatch
from learning_at_home.project import FLOAT_BYTES
from learning_at_home.tensors.compression import decode, encode
from learning_at_home.tensors.finite import each_is_finite, is_finite
from learning_at_home.tensors.small import (
    COPIED_BYTES,
    IN_NUMPY,
    NOT_IN_NUMPY,
    are_finite_bytes,
    as_dtype,
    bytes_of,
    from_bytes,
    from_bytes_checked,
)
from learning_at_home.tensors.staging import to_cpu
from learning_at_home.wire.messages import CHUNK_BYTES, Codec, TensorSpec

if sys.byteorder != "little":  # pragma: no cover - no such machine runs torch today
    raise ImportError("Learning@home needs a little-endian machine: its wire format is raw little-endian numbers")

Buffer = Any  # bytes-like: zmq.Frame, memoryview, bytes
Framed = tuple[tuple[TensorSpec, ...], Sequence[memoryview | bytes]]  # some tensors as they travel
DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
DTYPE_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
PIECE_BYTES = 512 * 1024  # what is summed and then copied is still in a core's second cache


def spec_of(tensor: Tensor) -> TensorSpec:
    """dtype and shape as they stand in a header. Raises SpecMismatch for a dtype that the wire does not carry."""
    name = DTYPE_NAMES.get(tensor.dtype)
    if name is None:
        raise SpecMismatch(f"{tensor.dtype} cannot be sent; these can: {', '.join(DTYPES)}")
    return TensorSpec(name, tuple(tensor.shape))  # type: ignore[arg-type]


def to_frames(
    tensor: Tensor, codec: Codec = "none", chunk_bytes: int = CHUNK_BYTES
) -> tuple[TensorSpec, Sequence[memoryview | bytes]]:
    """The header entry of a tensor and its bytes. Without a codec it copies what is on a GPU, not contiguous or small.

    Raises NonFiniteTensor when a number does not fit the codec.
    """
    spec = spec_of(tensor)
    if codec == "none" and (copy := bytes_of(tensor)) is not None:
        return spec, (copy,)
    if not tensor.numel():
        return spec, ()
    tensor = tensor.detach().contiguous().resolve_neg()
    if not tensor.data_ptr():  # one of autograd's zeros without memory
        tensor = tensor.clone()
    if codec != "none" and tensor.is_floating_point():
        tensor = encode(tensor.view(-1), codec)
    if not tensor.is_cpu:
        tensor = to_cpu(tensor)
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    frame = tensor.numpy().data.cast("B")
    if len(frame) <= chunk_bytes:
        return spec, [frame]
    return spec, [frame[start : start + chunk_bytes] for start in range(0, len(frame), chunk_bytes)]


def to_frames_checked(tensor: Tensor, chunk_bytes: int) -> tuple[TensorSpec, Sequence[memoryview | bytes], bool]:
    """The same without a codec, and whether all numbers are finite where that costs next to nothing; else True."""
    spec, frames = to_frames(tensor, "none", chunk_bytes)
    if len(frames) == 1 and isinstance(frames[0], bytes):
        return spec, frames, are_finite_bytes(frames[0], spec.dtype) or is_finite(tensor)
    return spec, frames, True


def from_frames(spec: TensorSpec, frames: Sequence[Buffer], codec: Codec = "none") -> Tensor:
    """The tensor of a header entry, on the CPU, whatever its numbers are.

    `frames` must have the sizes that `wire.framing.split_frames` checked. One aligned frame becomes the tensor's memory
    (ZeroMQ aligns those from 8 KiB on); several, or an unaligned one, are joined by one copy.
    """
    if codec != "none" and frames and spec.dtype in FLOAT_BYTES:
        return decode(spec, [memoryview(frame) for frame in frames], codec)[0]
    if len(frames) != 1:
        return _join(spec, frames, checked=False)[0]
    if len(frames[0]) <= COPIED_BYTES:
        return from_bytes(spec, frames[0])
    return _in_place(spec, frames[0])


def from_frames_checked(spec: TensorSpec, frames: Sequence[Buffer], codec: Codec = "none") -> tuple[Tensor, bool]:
    """The same, and whether all its numbers are finite: sooner known than by a second look at the tensor."""
    if codec != "none" and frames and spec.dtype in FLOAT_BYTES:
        return decode(spec, [memoryview(frame) for frame in frames], codec)
    if len(frames) != 1:
        return _join(spec, frames, checked=True)
    if len(frames[0]) <= COPIED_BYTES:
        tensor, finite = from_bytes_checked(spec, frames[0])
        return tensor, finite or each_is_finite(tensor)
    tensor = _in_place(spec, frames[0])
    return tensor, is_finite(tensor)


def _in_place(spec: TensorSpec, frame: Buffer) -> Tensor:
    numbers = np.ndarray(spec.shape, IN_NUMPY[spec.dtype], frame)
    if not numbers.flags.carray:  # not aligned, or not to be written to
        numbers = numbers.copy()
    tensor = torch.from_numpy(numbers)
    return as_dtype(tensor, spec) if spec.dtype in NOT_IN_NUMPY else tensor


def _join(spec: TensorSpec, frames: Sequence[Buffer], checked: bool) -> tuple[Tensor, bool]:
    """Each piece is read from memory once: it is summed, and then copied out of the cache."""
    dtype = torch.uint8 if spec.dtype == "bool" else DTYPES[spec.dtype]
    joined = torch.empty(spec.shape, dtype=dtype)
    address = joined.data_ptr()
    finite = True
    for frame in frames:
        for piece in torch.frombuffer(frame, dtype=dtype).split(PIECE_BYTES // dtype.itemsize):
            if checked:
                finite = math.isfinite(piece.sum().item()) and finite
            ctypes.memmove(address, piece.data_ptr(), piece.nbytes)
            address += piece.nbytes
    return joined if spec.dtype != "bool" else as_dtype(joined, spec), finite or each_is_finite(joined)
