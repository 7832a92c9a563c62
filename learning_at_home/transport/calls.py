"""The bookkeeping of calls in flight: ids, deadlines, who answers what. Pure: no socket, no clock; `now` is passed in.

Every call that is added leaves exactly once: by a reply, by a failure, by its deadline, or because its peer was lost.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from learning_at_home.errors import CallTimeout, LearningAtHomeError, WireError, from_wire
from learning_at_home.peer_address import PeerAddress
from learning_at_home.wire.framing import split_frames
from learning_at_home.wire.messages import Failure, Operation, Reply, TensorSpec

Frames = list[list[Any]]  # the frames of each tensor (zmq.Frame; bytes in tests)


@dataclass(frozen=True, slots=True)
class Call:
    """Work for one expert, ready to be sent: header entries and the frames of all tensors, in order."""

    uid: str
    operation: Operation
    tensors: tuple[TensorSpec, ...]
    frames: tuple[memoryview | bytes, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one call: either `reply` with its tensors' frames, or `error`."""

    call_id: int
    uid: str
    peer: PeerAddress
    reply: Reply | None
    tensors: Frames
    error: LearningAtHomeError | None
    seconds: float


@dataclass(frozen=True, slots=True)
class _Pending:
    uid: str
    peer: PeerAddress
    sent: float
    deadline: float


@dataclass(slots=True)
class CallTable:
    """Calls in flight and answers that wait to be fetched."""

    ids: Iterable[int]
    late: int = 0  # answers to calls that were abandoned or timed out
    _earliest: float = math.inf  # no pending call's deadline is before this
    _pending: dict[int, _Pending] = field(default_factory=dict)
    _answers: deque[Answer] = field(default_factory=deque)

    @property
    def num_open(self) -> int:
        """Calls whose answer was not fetched yet."""
        return len(self._pending) + len(self._answers)

    def add(self, peer: PeerAddress, calls: Sequence[Call], now: float, deadline: float) -> list[int]:
        """Ids for calls that are about to be sent."""
        call_ids = list(itertools.islice(self.ids, len(calls)))
        self._earliest = min(self._earliest, deadline)
        for call_id, call in zip(call_ids, calls, strict=True):
            self._pending[call_id] = _Pending(call.uid, peer, now, deadline)
        return call_ids

    def pop(self) -> Answer | None:
        return self._answers.popleft() if self._answers else None

    def replied(self, peer: PeerAddress, reply: Reply, frames: Sequence[Any], now: float) -> None:
        """A reply came. A wrong shape of message is the peer's fault and becomes this call's WireError."""
        pending = self._take(peer, reply.call_id)
        if pending is None:
            return
        try:
            tensors = split_frames([reply.tensors], frames)[0]
        except WireError as error:
            broken = WireError(f"{pending.uid}: {error.message}", peer=peer.name)
            self._answers.append(Answer(reply.call_id, pending.uid, peer, None, [], broken, now - pending.sent))
            return
        self._answers.append(Answer(reply.call_id, pending.uid, peer, reply, tensors, None, now - pending.sent))

    def failed(self, peer: PeerAddress, failure: Failure, now: float) -> None:
        """A failure came: of one call, or with call_id None of everything that waits for this peer."""
        retry_after_s = None if failure.retry_after_ms is None else failure.retry_after_ms / 1000
        error = from_wire(failure.code, failure.message, peer=peer.name, retry_after_s=retry_after_s)
        if failure.call_id is None:
            self.lost(peer, error, now)
        elif pending := self._take(peer, failure.call_id):
            self._answers.append(Answer(failure.call_id, pending.uid, peer, None, [], error, now - pending.sent))

    def lost(self, peer: PeerAddress, error: LearningAtHomeError, now: float) -> None:
        """All calls that wait for this peer end with `error`."""
        for call_id in [i for i, p in self._pending.items() if p.peer.public_key == peer.public_key]:
            pending = self._pending.pop(call_id)
            self._answers.append(Answer(call_id, pending.uid, peer, None, [], error, now - pending.sent))

    def expire(self, now: float) -> list[PeerAddress]:
        """Ends the calls whose deadline has passed; returns the peers that did not answer."""
        silent: list[PeerAddress] = []
        if now < self._earliest:
            return silent
        for call_id in [i for i, p in self._pending.items() if p.deadline <= now]:
            pending = self._pending.pop(call_id)
            error = CallTimeout(f"{pending.uid}: no answer in {now - pending.sent:.2f} s", peer=pending.peer.name)
            self._answers.append(Answer(call_id, pending.uid, pending.peer, None, [], error, now - pending.sent))
            silent.append(pending.peer)
        self._earliest = min((p.deadline for p in self._pending.values()), default=math.inf)
        return silent

    def next_deadline(self) -> float:
        """When `expire` should be called next; infinity when nothing is pending."""
        return self._earliest

    def abandon(self) -> None:
        """Forget everything; what still comes is late."""
        self._pending.clear()
        self._answers.clear()

    def _take(self, peer: PeerAddress, call_id: int) -> _Pending | None:
        pending = self._pending.get(call_id)
        if (
            pending is None or pending.peer.public_key != peer.public_key
        ):  # answers for another peer's call count as noise
            self.late += 1
            return None
        return self._pending.pop(call_id)
