"""The messages between a caller and a node, as values. docs/wire-format.md is the normative text.

A message is a ZeroMQ multipart: frame 0 is one of these structs in msgpack (a map with the tag `type`), the frames
after it are raw little-endian tensor bytes in the order in which the header lists the tensors. Knows nothing of sockets
or torch.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec

from learning_at_home.project import DTYPE_BYTES, DtypeName

PROTOCOL_VERSIONS = (1, 1)  # first and last version that this code speaks
CHUNK_BYTES = 1 << 20  # CURVE moves frames of 1 MiB nearly twice as fast as one of 8 MiB
MAX_HEADER_BYTES = 256 * 1024  # a message with work for 1,024 experts takes about 60 KB
MAX_WORK_PER_REQUEST = 1_024
MAX_TENSORS_PER_WORK = 16
MAX_DIMENSIONS = 8
MAX_MESSAGE_CHARS = 2_000

Operation = Literal["forward", "backward"]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class TensorSpec(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """dtype and shape of one tensor; how many bytes and frames follow from them and from nothing else."""

    dtype: DtypeName
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    @property
    def num_frames(self) -> int:
        """Frames of CHUNK_BYTES, the last one shorter; a tensor without elements has none."""
        return -(-self.num_bytes // CHUNK_BYTES)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


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


class Work(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one expert shall do. forward: [inputs]; backward: [inputs, gradient of the outputs]."""

    call_id: int  # counter of the caller's; the answer carries it
    uid: str
    operation: Operation
    tensors: tuple[TensorSpec, ...]


class Request(msgspec.Struct, frozen=True, tag="request", forbid_unknown_fields=True):
    """Work for any number of one node's experts; each answers on its own as soon as it is done."""

    project: str
    issued_ms: int  # caller's corrected wall clock; with the caller's key and call_id it makes the id of a backward
    timeout_ms: int  # from arrival; work not started by then is dropped
    work: tuple[Work, ...]
    codec: Literal["none"] = "none"


class Reply(msgspec.Struct, frozen=True, tag="reply", forbid_unknown_fields=True):
    """The result of one Work: its tensors follow as frames. backward: the gradient of the inputs."""

    call_id: int
    tensors: tuple[TensorSpec, ...]
    queued_us: Count  # admission to start of compute
    computed_us: Count
    updates: Count  # optimizer steps of this expert so far
    load_ms: Annotated[float, msgspec.Meta(ge=0, le=3.6e6)]  # hint: how long new work would wait now


class Failure(msgspec.Struct, frozen=True, tag="failure", forbid_unknown_fields=True):
    """One Work, or with call_id None the whole message, that has no result. Code: learning_at_home.errors."""

    call_id: int | None
    code: int
    message: str
    retry_after_ms: Count | None = None


CallerMessage = Greeting | Request
NodeMessage = Welcome | Reply | Failure
