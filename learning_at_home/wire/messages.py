"""The messages between a caller and a node, as values. docs/wire-format.md is the normative text.

A message is a ZeroMQ multipart: frame 0 is one of these structs in msgpack (a map with the tag `type`), the frames
after it are raw little-endian tensor bytes in the order in which the header lists the tensors; where these are small,
the header holds them itself, as `data`, and no frame follows. Knows nothing of sockets or torch.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, get_args

import msgspec

from learning_at_home.project import DTYPE_BYTES, FLOAT_BYTES, MAX_BYTES_PER_REQUEST
from learning_at_home.schema import DtypeName

PROTOCOL_VERSIONS = (5, 5)  # first and last version that this code speaks
CHUNK_BYTES = 1 << 20  # CURVE moves frames of 1 MiB nearly twice as fast as one of 8 MiB
PLAIN_CHUNK_BYTES = MAX_BYTES_PER_REQUEST  # without it a tensor is one frame, which needs no copy to be one again
SMALL_BYTES = 16 * 1024  # a tensor up to this travels in the header, if there is room: a frame costs more
MAX_DATA_BYTES = 128 * 1024  # of all tensors in a header
MAX_HEADER_BYTES = 256 * 1024  # a message with work for 1,024 experts takes about 60 KB
MAX_WORK_PER_REQUEST = 1_024
MAX_TENSORS_PER_WORK = 16
MAX_DIMENSIONS = 8
MAX_DIMENSION = 1 << 40  # an ordinary integer for msgpack; what bounds a tensor is the limit of bytes
MAX_TIMEOUT_MS = 3_600_000
MAX_MESSAGE_CHARS = 2_000

BLOCK_ELEMENTS = 128  # of one scale of codec int8: 3 % of bytes for scales, and an outlier coarsens few neighbours

# A gradient is a backward without an update; the last two are of an expert in evaluation mode: without dropout.
Operation = Literal["forward", "backward", "gradient", "eval_forward", "eval_gradient"]
FORWARDS: tuple[Operation, ...] = ("forward", "eval_forward")
EVALUATIONS: tuple[Operation, ...] = ("eval_forward", "eval_gradient")
Codec = Literal["none", "float16", "bfloat16", "int8"]  # how a tensor's numbers travel; its dtype stays what it is
CODECS: tuple[Codec, ...] = get_args(Codec)
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Shape = Annotated[
    tuple[Annotated[int, msgspec.Meta(ge=0, le=MAX_DIMENSION)], ...], msgspec.Meta(max_length=MAX_DIMENSIONS)
]


class TensorSpec(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """dtype and shape of one tensor, as both sides compute with it; its bytes on the wire follow by `wire_bytes`."""

    dtype: DtypeName
    shape: Shape

    @property
    def num_bytes(self) -> int:
        """In memory, and on the wire under codec "none"."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


def wire_bytes(spec: TensorSpec, codec: Codec = "none") -> int:
    """Bytes of a tensor as it travels; one without elements has none."""
    if codec == "none" or spec.dtype not in FLOAT_BYTES:
        return spec.num_bytes
    num_elements = math.prod(spec.shape)
    if codec == "int8":
        return num_elements + 4 * -(-num_elements // BLOCK_ELEMENTS)  # with a float32 scale for each block
    return 2 * num_elements


class Greeting(msgspec.Struct, frozen=True, tag="greeting", forbid_unknown_fields=True):
    """First message of a caller on each connection; requests may follow it without waiting."""

    versions: tuple[int, int]  # first and last protocol version the caller speaks
    public_key: bytes  # Ed25519; must convert to the CURVE key of the connection
    agent: str  # "learning-at-home/0.1.0", for logs
    certificate: bytes | None = None  # membership, for projects that have members; reserved: open projects send None


class Welcome(msgspec.Struct, frozen=True, tag="welcome", forbid_unknown_fields=True):
    """The node's answer to a greeting."""

    version: int  # what both speak
    public_key: bytes
    agent: str
    wall_ms: int  # time hint
    max_rows: int
    max_bytes: int
    codecs: tuple[str, ...] = ("none",)  # that it takes and answers in


Data = Annotated[bytes, msgspec.Meta(max_length=MAX_DATA_BYTES)]  # all tensors' bytes; encoding takes any buffer
Tensors = Annotated[tuple[TensorSpec, ...], msgspec.Meta(max_length=MAX_TENSORS_PER_WORK)]


class Work(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What one expert shall do. forward: [inputs]; backward and gradient: [inputs, gradients of the outputs]."""

    call_id: int  # counter of the caller's; the answer carries it
    uid: str
    operation: Operation
    tensors: Tensors


class Request(msgspec.Struct, frozen=True, tag="request", forbid_unknown_fields=True):
    """Work for any number of one node's experts; each answers on its own as soon as it is done."""

    project: str
    issued_ms: int  # caller's corrected wall clock when it first asked; with its key and call_id the id of each work
    timeout_ms: Annotated[int, msgspec.Meta(ge=1, le=MAX_TIMEOUT_MS)]  # from arrival; not started by then: dropped
    work: Annotated[tuple[Work, ...], msgspec.Meta(min_length=1, max_length=MAX_WORK_PER_REQUEST)]
    waited_ms: Count = 0  # from issued_ms to this attempt: over 0 in a retry
    codec: Codec = "none"  # of this message's tensors
    reply_codec: Codec = "none"  # that the answers shall have
    data: Data = b""


class Reply(msgspec.Struct, frozen=True, tag="reply", forbid_unknown_fields=True):
    """The result of one Work: its tensors are in `data`, or follow as frames. They are the outputs; of a backward
    and of a gradient, the gradients of the inputs."""

    call_id: int
    tensors: Tensors
    queued_us: Count  # admission to start of compute
    computed_us: Count
    updates: Count  # optimizer steps of this expert so far
    load_ms: Annotated[float, msgspec.Meta(ge=0, le=3.6e6)]  # hint: how long new work would wait now
    codec: Codec = "none"  # of these tensors: the one asked for, or "none" when the values do not fit it
    data: Data = b""


class Failure(msgspec.Struct, frozen=True, tag="failure", forbid_unknown_fields=True):
    """One Work, or with call_id None the whole message, that has no result. Code: learning_at_home.errors."""

    call_id: int | None
    code: int
    message: str
    retry_after_ms: Count | None = None


class Answers(msgspec.Struct, frozen=True, tag="answers", forbid_unknown_fields=True):
    """Answers to one caller that were ready at one moment and need no frames: a message costs more than an answer."""

    answers: Annotated[tuple[Reply | Failure, ...], msgspec.Meta(min_length=1, max_length=MAX_WORK_PER_REQUEST)]


CallerMessage = Greeting | Request
NodeMessage = Welcome | Reply | Failure | Answers
