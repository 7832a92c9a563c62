"""Messages to header bytes and back, and the check of the frames that follow a header.

Bytes from the network raise WireError and nothing else, and sizes are checked before anything is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from learning_at_home.errors import WireError
from learning_at_home.project import DTYPE_BYTES, MAX_BYTES_PER_REQUEST
from learning_at_home.wire.messages import (
    CHUNK_BYTES,
    MAX_DATA_BYTES,
    MAX_HEADER_BYTES,
    SMALL_BYTES,
    CallerMessage,
    Codec,
    NodeMessage,
    TensorSpec,
    wire_bytes,
)


class Sized(Protocol):
    """A frame: only its length matters here (bytes, memoryview, zmq.Frame)."""

    def __len__(self) -> int: ...


FrameT = TypeVar("FrameT", bound=Sized)
Header = Any  # bytes, memoryview, zmq.Frame
_MessageT = TypeVar("_MessageT")


def _decoding(decoder: msgspec.msgpack.Decoder[_MessageT]) -> Callable[[Header], _MessageT]:
    decode = decoder.decode

    def checked(header: Header) -> _MessageT:
        if len(header) > MAX_HEADER_BYTES:
            raise WireError(f"a header of {len(header):,} bytes; {MAX_HEADER_BYTES:,} are allowed")
        try:
            return decode(header)
        except (msgspec.DecodeError, RecursionError, OverflowError, ValueError) as error:
            raise WireError(f"the header is not a message of this protocol: {error}") from error

    return checked


encode: Callable[[CallerMessage | NodeMessage], bytes] = msgspec.msgpack.Encoder().encode  # a message's header
_caller_decoder: msgspec.msgpack.Decoder[CallerMessage] = msgspec.msgpack.Decoder(CallerMessage)
_node_decoder: msgspec.msgpack.Decoder[NodeMessage] = msgspec.msgpack.Decoder(NodeMessage)
decode_caller = _decoding(_caller_decoder)  # what a caller sent; both raise WireError
decode_node = _decoding(_node_decoder)  # what a node answered


def take_small(frames: Sequence[memoryview | bytes]) -> tuple[bytes, Sequence[memoryview | bytes]]:
    """The `data` of a message with these frames, and those that follow the header: either has all there is."""
    num_bytes = 0
    for frame in frames:
        num_bytes += len(frame)
        if len(frame) > SMALL_BYTES:
            return b"", frames
    if num_bytes > MAX_DATA_BYTES:
        return b"", frames
    return b"".join(frames), ()


def split_frames(
    groups: Sequence[tuple[TensorSpec, ...]],
    frames: Sequence[FrameT],
    limit_bytes: int = 2 * MAX_BYTES_PER_REQUEST,
    codec: Codec = "none",
    data: bytes = b"",
    chunk_bytes: int = CHUNK_BYTES,
) -> list[list[list[FrameT | memoryview]]]:
    """The frames of each tensor of each group: result[group][tensor] is a list of frames, or one piece of `data`.

    Raises WireError when number or size of the frames differs from what the header said, or when the tensors, on the
    wire or decoded, take more than `limit_bytes` together.
    """
    if data and frames:
        raise WireError(f"the header holds the tensors itself, and {len(frames)} frames came")
    whole = memoryview(data)
    result: list[list[list[FrameT | memoryview]]] = []
    position = 0  # in `data`, or among the frames
    room_bytes = limit_bytes
    for group in groups:
        tensors: list[list[FrameT | memoryview]] = []
        for spec in group:
            size = decoded_size = math.prod(spec.shape) * DTYPE_BYTES[spec.dtype]
            if codec != "none":
                size = wire_bytes(spec, codec)
            room_bytes -= max(size, decoded_size)
            if room_bytes < 0:
                raise WireError(f"the header announces more bytes of tensors than the {limit_bytes:,} that are allowed")
            taken: list[FrameT | memoryview]
            if data:
                stop = position + size
                taken = [whole[position:stop]] if size else []
            else:
                stop = position + -(-size // chunk_bytes)
                taken = list(frames[position:stop])
                if size != sum(map(len, taken)) or (len(taken) > 1 and any(len(f) != chunk_bytes for f in taken[:-1])):
                    raise WireError(_differences(spec, size, taken, chunk_bytes))
            tensors.append(taken)
            position = stop
        result.append(tensors)
    if data and position != len(data):
        raise WireError(f"the header announces {position:,} bytes of tensors and holds {len(data):,}")
    if not data and position != len(frames):
        raise WireError(f"the header announces {position} frames, {len(frames)} came")
    return result


def _differences(spec: TensorSpec, size: int, frames: Sequence[Sized], chunk_bytes: int) -> str:
    return (
        f"the frames of {spec} have {', '.join(f'{len(frame):,}' for frame in frames) or 'no'} bytes; "
        f"{size:,} in frames of {chunk_bytes:,} are announced"
    )
