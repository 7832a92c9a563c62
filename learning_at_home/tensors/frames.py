"""torch tensors to the raw little-endian frames of the wire and back, without needless copies.

A tensor leaves as views of its own memory, in chunks of CHUNK_BYTES; the views keep it alive until ZeroMQ has sent
them. It must not be written to before that: callers hand over tensors that nobody else changes.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

import torch
import zmq
from torch import Tensor

from learning_at_home.errors import SpecMismatch
from learning_at_home.wire.messages import CHUNK_BYTES, Codec, TensorSpec

if sys.byteorder != "little":  # pragma: no cover - no such machine runs torch today
    raise ImportError("Learning@home needs a little-endian machine: its wire format is raw little-endian numbers")

DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
DTYPE_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
ALIGNMENT_BYTES = 64  # what torch's own allocator gives; ZeroMQ's small frames (under 8 KiB) lie anywhere


def spec_of(tensor: Tensor) -> TensorSpec:
    """dtype and shape as they stand in a header. Raises SpecMismatch for a dtype that the wire does not carry."""
    name = DTYPE_NAMES.get(tensor.dtype)
    if name is None:
        raise SpecMismatch(f"{tensor.dtype} cannot be sent; these can: {', '.join(DTYPES)}")
    return TensorSpec(name, tuple(tensor.shape))  # type: ignore[arg-type]


def to_frames(tensor: Tensor, codec: Codec = "none") -> tuple[TensorSpec, list[memoryview]]:
    """The header entry of a tensor and its bytes. Copies only what is on a GPU or not contiguous."""
    if codec != "none":
        raise NotImplementedError(codec)
    spec = spec_of(tensor)
    flat = tensor.detach().to("cpu").contiguous().view(-1)
    if not flat.numel():
        return spec, []
    data = flat.view(torch.uint8).numpy().data
    return spec, [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]


def from_frames(spec: TensorSpec, frames: Sequence[zmq.Frame], codec: Codec = "none") -> Tensor:
    """The tensor of a header entry, on the CPU. `frames` must have the sizes that `wire.framing.split_frames` checked.

    One aligned frame becomes the tensor's memory; several, or an unaligned one, are joined by one copy.
    """
    if codec != "none":
        raise NotImplementedError(codec)
    dtype = DTYPES[spec.dtype]
    if len(frames) == 1:
        tensor = torch.frombuffer(frames[0].buffer, dtype=dtype)
        if tensor.data_ptr() % ALIGNMENT_BYTES:
            tensor = tensor.clone()
        return tensor.view(spec.shape)
    joined = torch.empty(spec.shape, dtype=dtype)
    address = joined.data_ptr()
    for frame in frames:
        ctypes.memmove(address, torch.frombuffer(frame.buffer, dtype=torch.uint8).data_ptr(), len(frame))
        address += len(frame)
    return joined
