"""Answers of a node, right and wrong, as the messages of a hostile node's script."""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec
import torch
from torch import Tensor

from learning_at_home.wire.framing import encode
from learning_at_home.wire.messages import Failure, Reply, TensorSpec, Work
from tests.faults.hostile_node import Script

ROWS, FEATURES = 3, 6
SPEC = TensorSpec("float64", (ROWS, FEATURES))
DATA = struct.pack(f"<{ROWS * FEATURES}d", *[0.5] * (ROWS * FEATURES))


def rows(number: int = ROWS) -> Tensor:
    return torch.randn(number, FEATURES, dtype=torch.float64)


def reply(work: Work, *specs: TensorSpec, **changes: object) -> bytes:
    """A reply's header; `changes` to its map may break every rule."""
    header = msgspec.msgpack.decode(encode(Reply(work.call_id, specs or (SPEC,), 1, 2, 3, 0.5)))
    return msgspec.msgpack.encode({**header, **changes})


def failure(work: Work, **changes: object) -> bytes:
    header = msgspec.msgpack.decode(encode(Failure(work.call_id, 202, "out of luck")))
    return msgspec.msgpack.encode({**header, **changes})


def filled(value: float) -> bytes:
    return struct.pack(f"<{ROWS * FEATURES}d", *[0.5] * (ROWS * FEATURES - 1), value)


def says(*parts: Callable[[Work], bytes] | bytes) -> Script:
    """A script that answers every work by one message of these parts."""
    return lambda work, frames: [[part(work) if callable(part) else part for part in parts]]
