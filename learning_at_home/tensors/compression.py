"""Codecs of the wire: a tensor's numbers in fewer bytes, with a stated error. docs/wire-format.md is normative.

Works through a tensor in pieces that stay in the processor's cache from the first look to the last. Knows nothing of
frames.
"""

# N blocks, B = BLOCK_ELEMENTS numbers in each (in the last one, when it is shorter: what is left)

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from learning_at_home.errors import NonFiniteTensor, WireError
from learning_at_home.tensors.finite import each_is_finite, is_finite
from learning_at_home.wire.messages import BLOCK_ELEMENTS, CHUNK_BYTES, Codec, TensorSpec, wire_bytes

PIECE_ELEMENTS = 64 * 1024  # 256 KiB of float32 and as much of scratch: they fit a core's second cache
LARGEST_BYTE = 127
LEAST_MAXIMUM = 2.0**-119  # taken for a block's when that is smaller: its scale is a normal float32, with an inverse
MOST_MAXIMUM = 3.4e38  # 127 times its scale is finite, however that was rounded
_HALVES: dict[Codec, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def encode(flat: Tensor, codec: Codec) -> Tensor:
    """The bytes of a contiguous tensor of one dimension, uint8[wire_bytes], on its device. Not for codec "none".

    Raises NonFiniteTensor when a number would not arrive as a finite one.
    """
    if codec == "int8":
        encoded, fits = _encode_blocks(flat)
    else:
        encoded, fits = _encode_halves(flat, _HALVES[codec])
    if not fits:
        raise NonFiniteTensor(
            f"a number of the tensor is too large for codec {codec}, or not finite; send it with codec none"
        )
    return encoded


def decode(spec: TensorSpec, parts: Sequence[memoryview], codec: Codec) -> tuple[Tensor, bool]:
    """The tensor of a header entry, on the CPU, and whether all its numbers are finite. Not for empty tensors.

    `parts` are its bytes, whole or cut at multiples of CHUNK_BYTES. Raises WireError when there are more or fewer.
    """
    num_bytes = sum(map(len, parts))
    if num_bytes != wire_bytes(spec, codec):
        raise WireError(f"{spec} as {codec} has {num_bytes:,} bytes instead of {wire_bytes(spec, codec):,}")
    tensor = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype))
    flat = tensor.view(-1)
    if codec == "int8":
        return tensor, _decode_blocks(parts[0] if len(parts) == 1 else bytearray().join(parts), flat)
    return tensor, _decode_halves(parts, _HALVES[codec], flat)


def _encode_halves(flat: Tensor, dtype: torch.dtype) -> tuple[Tensor, bool]:
    halves = torch.empty(flat.shape, dtype=dtype, device=flat.device)
    limit = torch.finfo(dtype).max
    fits = True
    for numbers, encoded in zip(_pieces(flat), _pieces(halves), strict=True):
        encoded.copy_(numbers)
        fits = (_are_within(numbers, limit) or is_finite(encoded)) and fits
    return halves.view(torch.uint8), fits


def _are_within(numbers: Tensor, limit: float) -> bool:
    """True only if all are, by the fastest sum there is, that of the squares; False when it cannot tell."""
    return numbers.itemsize >= 4 and numbers.dot(numbers).item() <= limit * limit


def _decode_halves(parts: Sequence[memoryview], dtype: torch.dtype, flat: Tensor) -> bool:
    finite = True
    for part, decoded in zip(parts, flat.split(CHUNK_BYTES // 2) if len(parts) > 1 else (flat,), strict=True):
        halves = torch.from_numpy(_aligned(np.frombuffer(part, np.int16))).view(dtype)
        for numbers, piece in zip(_pieces(decoded), _pieces(halves), strict=True):
            finite = is_finite(numbers.copy_(piece)) and finite
    return finite


def _pieces(flat: Tensor) -> tuple[Tensor, ...]:
    """On a GPU, whose cost is the number of calls, the whole is one piece."""
    return flat.split(PIECE_ELEMENTS) if len(flat) > PIECE_ELEMENTS and flat.is_cpu else (flat,)


def _encode_blocks(flat: Tensor) -> tuple[Tensor, bool]:
    num_blocks = -(-len(flat) // BLOCK_ELEMENTS)
    encoded = torch.empty(4 * num_blocks + len(flat), dtype=torch.uint8, device=flat.device)
    scales = encoded[: 4 * num_blocks].view(torch.float32)
    numbers = encoded[4 * num_blocks :].view(torch.int8)
    for values_NB, scales_N, numbers_NB in _blocks(flat, scales, numbers):
        _quantize(values_NB, scales_N, numbers_NB)
    return encoded, scales.amax().item() <= MOST_MAXIMUM / LARGEST_BYTE  # NaN is not


def _quantize(values_NB: Tensor, scales_N: Tensor, numbers_NB: Tensor) -> None:
    """Fills in scales and numbers; NaN or infinity in a block becomes its scale."""
    values_NB = values_NB.float()
    scratch_NB = values_NB.abs()
    largest_N = scratch_NB.amax(1).clamp_min_(LEAST_MAXIMUM)
    inverse_N = torch.div(largest_N, LARGEST_BYTE, out=scales_N).reciprocal()
    numbers_NB.copy_(torch.mul(values_NB, inverse_N.unsqueeze(1), out=scratch_NB).round_())


def _decode_blocks(encoded: memoryview | bytearray, flat: Tensor) -> bool:
    num_blocks = -(-len(flat) // BLOCK_ELEMENTS)
    scales_in_numpy = _aligned(np.frombuffer(encoded, np.float32, num_blocks))
    scales = torch.from_numpy(scales_in_numpy)
    numbers = torch.from_numpy(_aligned(np.frombuffer(encoded, np.int8, offset=4 * num_blocks)))
    for values_NB, scales_N, numbers_NB in _blocks(flat, scales, numbers):
        values_NB.copy_(numbers_NB).mul_(scales_N.unsqueeze(1))
    bound = 128 * float(np.abs(scales_in_numpy).max())  # a stranger may write -128, too
    return bound <= torch.finfo(flat.dtype).max or each_is_finite(flat)


def _blocks(values: Tensor, scales: Tensor, numbers: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Pieces of whole blocks, each with its scales and numbers; at the end what is left of a block."""
    whole = len(values) // BLOCK_ELEMENTS * BLOCK_ELEMENTS
    piece = PIECE_ELEMENTS if values.is_cpu else max(whole, 1)
    for start in range(0, whole, piece):
        stop = min(start + piece, whole)
        yield (
            values[start:stop].view(-1, BLOCK_ELEMENTS),
            scales[start // BLOCK_ELEMENTS : stop // BLOCK_ELEMENTS],
            numbers[start:stop].view(-1, BLOCK_ELEMENTS),
        )
    if whole < len(values):
        yield values[whole:].view(1, -1), scales[-1:], numbers[whole:].view(1, -1)


def _aligned(numbers: np.ndarray[tuple[int], np.dtype[np.generic]]) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
    return numbers if numbers.flags.carray else numbers.copy()
