"""Valid messages of every kind, for the fuzzer to change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learning_at_home.identity import Identity
from learning_at_home.tensors.frames import spec_of, to_frames
from learning_at_home.wire.framing import encode, take_small
from learning_at_home.wire.messages import (
    CODECS,
    PROTOCOL_VERSIONS,
    Answers,
    Codec,
    Failure,
    Greeting,
    Operation,
    Reply,
    Request,
    Work,
)
from tests.faults.hostile_node import welcome
from tests.faults.mutations import Parts

UIDS = ("ffn0.0", "ffn0.1")
FIXED_MS = 1_790_000_000_000
TIMEOUT_MS = 3_600_000  # as long as the longest round: none is dropped for its age alone


def rows(number: int = 3) -> Tensor:
    return torch.randn(number, 6, dtype=torch.float64)


class _Writer:
    """Requests that were issued at one moment, so that the same seed gives the same bytes."""

    def __init__(self, issued_ms: int) -> None:
        self._issued_ms = issued_ms

    def message(
        self,
        works: Sequence[tuple[str, Operation, list[Tensor]]],
        codec: Codec = "none",
        waited_ms: int = 0,
        *,
        in_header: bool = False,
    ) -> Parts:
        """A request with these pieces of work; `in_header`: their tensors are there, too."""
        entries, frames = [], []
        for call_id, (uid, operation, tensors) in enumerate(works, start=1):
            framed = [to_frames(tensor, codec) for tensor in tensors]
            entries.append(Work(call_id, uid, operation, tuple(spec for spec, _ in framed)))
            frames += [bytes(frame) for _, parts in framed for frame in parts]
        issued_ms = self._issued_ms - waited_ms
        data, left = take_small(frames) if in_header else (b"", frames)
        request = Request("test", issued_ms, TIMEOUT_MS, tuple(entries), waited_ms, codec, codec, data)
        return [encode(request), *map(bytes, left)]


def caller_messages(identity: Identity, issued_ms: int = FIXED_MS) -> list[Parts]:
    """What callers send. Only forwards carry numbers that an expert would take."""
    message = _Writer(issued_ms).message
    x = rows()
    nan = torch.full_like(x, torch.nan)
    return [
        [encode(Greeting(PROTOCOL_VERSIONS, identity.public_key, "mallory/1"))],
        *(message([(UIDS[0], "forward", [x])], codec) for codec in CODECS),
        *(message([(UIDS[1], "backward", [nan, nan])], waited_ms=waited_ms) for waited_ms in (0, 500)),
        message([(UIDS[0], "forward", [x]), (UIDS[1], "forward", [rows(1)]), ("ffn0.9", "forward", [x])]),
        message([(UIDS[0], "backward", [x, nan]), (UIDS[0], "forward", [x])]),
        message([(UIDS[0], "forward", [torch.empty(0, 6, dtype=torch.float64)])]),
        message([(UIDS[0], "forward", [x.to(dtype)]) for dtype in (torch.float32, torch.float16, torch.bfloat16)]),
        message([(UIDS[0], "forward", [x])], waited_ms=100),
        message([(UIDS[0], "forward", [x])], in_header=True),
        message([(UIDS[1], "forward", [x]), (UIDS[0], "forward", [x])], in_header=True),
    ]


def node_messages(identity: Identity) -> list[Parts]:
    """What nodes answer."""
    return [
        [welcome(identity)],
        *(_reply(codec) for codec in CODECS),
        [encode(Reply(7, (spec_of(rows()),), 1, 2, 3, 0.5, data=bytes(144)))],
        [encode(Answers((Reply(7, (spec_of(rows()),), 1, 2, 3, 0.5, data=bytes(144)), Failure(8, 203, "full"))))],
        [encode(Failure(9, 201, "this node does not host ffn0.0.2"))],
        [encode(Failure(None, 205, "this node is leaving", 250))],
    ]


def _reply(codec: Codec) -> Parts:
    spec, frames = to_frames(rows(), codec)
    return [encode(Reply(7, (spec,), 1, 2, 3, 0.5, codec)), *map(bytes, frames)]
