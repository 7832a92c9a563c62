"""Messages to header bytes and back, and the check of the frames that follow a header.

Bytes from the network raise WireError and nothing else, and sizes are checked before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import msgspec

from learning_at_home.errors import WireError
from learning_at_home.project import MAX_BYTES_PER_REQUEST
from learning_at_home.wire.messages import (
    CHUNK_BYTES,
    MAX_DIMENSIONS,
    MAX_HEADER_BYTES,
    MAX_TENSORS_PER_WORK,
    MAX_WORK_PER_REQUEST,
    CallerMessage,
    Codec,
    NodeMessage,
    Reply,
    Request,
    TensorSpec,
    wire_bytes,
)

MAX_DIMENSION = (
    1 << 40
)  # keeps every product of a few sizes an ordinary integer; the byte limit is what bounds a tensor


class Sized(Protocol):
    """A frame: only its length matters here (bytes, memoryview, zmq.Frame)."""

    def __len__(self) -> int: ...


FrameT = TypeVar("FrameT", bound=Sized)

_encoder = msgspec.msgpack.Encoder()
_caller_decoder: msgspec.msgpack.Decoder[CallerMessage] = msgspec.msgpack.Decoder(CallerMessage)
_node_decoder: msgspec.msgpack.Decoder[NodeMessage] = msgspec.msgpack.Decoder(NodeMessage)
_MessageT = TypeVar("_MessageT")


def encode(message: CallerMessage | NodeMessage) -> bytes:
    """Header bytes of a message."""
    return _encoder.encode(message)


def decode_caller(header: bytes | memoryview) -> CallerMessage:
    """What a caller sent. Raises WireError."""
    message = _decode(_caller_decoder, header)
    if isinstance(message, Request):
        if not 1 <= len(message.work) <= MAX_WORK_PER_REQUEST:
            raise WireError(
                f"a request carries {len(message.work)} pieces of work; 1 to {MAX_WORK_PER_REQUEST} are allowed"
            )
        if not 0 < message.timeout_ms <= 3_600_000:
            raise WireError(f"timeout_ms {message.timeout_ms} is out of range")
        for work in message.work:
            _check_specs(work.tensors)
    return message


def decode_node(header: bytes | memoryview) -> NodeMessage:
    """What a node answered. Raises WireError."""
    message = _decode(_node_decoder, header)
    if isinstance(message, Reply):
        _check_specs(message.tensors)
    return message


def _decode(decoder: msgspec.msgpack.Decoder[_MessageT], header: bytes | memoryview) -> _MessageT:
    if len(header) > MAX_HEADER_BYTES:
        raise WireError(f"a header of {len(header):,} bytes; {MAX_HEADER_BYTES:,} are allowed")
    try:
        return decoder.decode(header)
    except (msgspec.DecodeError, RecursionError, OverflowError, ValueError) as error:
        raise WireError(f"the header is not a message of this protocol: {error}") from error


def _check_specs(specs: tuple[TensorSpec, ...]) -> None:
    if len(specs) > MAX_TENSORS_PER_WORK:
        raise WireError(f"{len(specs)} tensors in one piece of work; {MAX_TENSORS_PER_WORK} are allowed")
    for spec in specs:
        if len(spec.shape) > MAX_DIMENSIONS or any(not 0 <= size <= MAX_DIMENSION for size in spec.shape):
            raise WireError(f"a tensor of shape {list(spec.shape[:MAX_DIMENSIONS])} is out of range")


def split_frames(
    groups: Sequence[tuple[TensorSpec, ...]],
    frames: Sequence[FrameT],
    limit_bytes: int = 2 * MAX_BYTES_PER_REQUEST,
    codec: Codec = "none",
) -> list[list[list[FrameT]]]:
    """The frames of each tensor of each group: result[group][tensor] is a list of frames.

    Raises WireError when number or size of the frames differs from what the header said, or when the tensors, on the
    wire or decoded, take more than `limit_bytes` together.
    """
    sizes = [[(wire_bytes(spec, codec), spec) for spec in group] for group in groups]
    expected = sum(max(size, spec.num_bytes) for group in sizes for size, spec in group)
    if expected > limit_bytes:
        raise WireError(f"the header announces {expected:,} bytes of tensors; {limit_bytes:,} are allowed")
    num_frames = sum(-(-size // CHUNK_BYTES) for group in sizes for size, _ in group)
    if num_frames != len(frames):
        raise WireError(f"the header announces {num_frames} frames, {len(frames)} came")
    result: list[list[list[FrameT]]] = []
    position = 0
    for group in sizes:
        tensors = []
        for size, spec in group:
            taken = list(frames[position : position - (-size // CHUNK_BYTES)])
            position += len(taken)
            _check_sizes(spec, size, taken)
            tensors.append(taken)
        result.append(tensors)
    return result


def _check_sizes(spec: TensorSpec, left: int, frames: Sequence[Sized]) -> None:
    for frame in frames:
        size = min(left, CHUNK_BYTES)
        if len(frame) != size:
            raise WireError(f"a frame of {spec} has {len(frame):,} bytes instead of {size:,}")
        left -= size
