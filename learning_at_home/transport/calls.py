"""The bookkeeping of calls in flight: ids, deadlines, who answers what. Pure: no socket, no clock; `now` is passed in.

Every call that is added leaves exactly once: by a reply, by a failure, by its deadline, or because its peer was lost.
One that was lost may be added again: it keeps its id, by which the node knows a backward that it has applied already.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from learning_at_home.errors import CallTimeout, LearningAtHomeError, WireError, from_wire
from learning_at_home.peer_address import PeerAddress
from learning_at_home.wire.framing import split_frames
from learning_at_home.wire.messages import CHUNK_BYTES, Failure, Operation, Reply, TensorSpec

Frames = list[list[Any]]  # the frames of each tensor (zmq.Frame; memoryview, bytes in tests)


class Call(msgspec.Struct, eq=False):
    """Work for one expert, ready to be sent: header entries and the frames of all tensors, in order.

    The first four are the caller's, and `task`, which comes back untouched with the answer; the rest is the table's.
    """

    uid: str
    operation: Operation
    tensors: tuple[TensorSpec, ...]
    frames: Sequence[memoryview | bytes]
    task: Any = None
    peer: PeerAddress | None = None
    call_id: int = -1  # given when it is first sent; with `issued_ms` and our key it names the work for good
    issued_ms: int = 0
    first_sent: float = 0.0  # monotonic, as the next two
    sent: float = 0.0
    deadline: float = 0.0


class Answer(msgspec.Struct, frozen=True, eq=False):
    """What became of one call: either `reply` with its tensors' frames, or `error`."""

    call: Call
    peer: PeerAddress
    reply: Reply | None
    tensors: Frames
    error: LearningAtHomeError | None
    seconds: float  # since it was last sent

    @property
    def call_id(self) -> int:
        return self.call.call_id

    @property
    def uid(self) -> str:
        return self.call.uid


class CallTable:
    """Calls in flight and answers that wait to be fetched."""

    def __init__(self, ids: Iterator[int]) -> None:
        self._ids = ids
        self.late = 0  # answers to calls that were abandoned or timed out
        self.earliest = math.inf  # when to call `expire`: no pending call's deadline is before this
        self.pending: dict[int, Call] = {}  # by id; to be read only
        self.answers: deque[Answer] = deque()  # to be fetched

    def add(self, peer: PeerAddress, calls: Sequence[Call], now: float, wall_ms: int, deadline: float) -> None:
        """Calls are about to be sent; those that never were get their ids."""
        if deadline < self.earliest:
            self.earliest = deadline
        for call in calls:
            if call.call_id < 0:
                call.call_id = next(self._ids)
                call.issued_ms = wall_ms
                call.first_sent = now
            call.peer = peer
            call.sent = now
            call.deadline = deadline
            self.pending[call.call_id] = call

    def replied(
        self, peer: PeerAddress, reply: Reply, frames: Sequence[Any], now: float, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        """A reply came. A wrong shape of message is the peer's fault and becomes this call's WireError."""
        call = self._take(peer, reply.call_id)
        if call is None:
            return
        try:
            tensors = split_frames(
                (reply.tensors,), frames, codec=reply.codec, data=reply.data, chunk_bytes=chunk_bytes
            )[0]
        except WireError as error:
            self._end(call, WireError(f"{call.uid}: {error.message}", peer=peer.name), now)
            return
        self.answers.append(Answer(call, peer, reply, tensors, None, now - call.sent))

    def failed(self, peer: PeerAddress, failure: Failure, now: float) -> None:
        """A failure came: of one call, or with call_id None of everything that waits for this peer."""
        retry_after_s = None if failure.retry_after_ms is None else failure.retry_after_ms / 1000
        error = from_wire(failure.code, failure.message, peer=peer.name, retry_after_s=retry_after_s)
        if failure.call_id is None:
            self.lost(peer, error, now)
        elif call := self._take(peer, failure.call_id):
            self._end(call, error, now)

    def lost(self, peer: PeerAddress, error: LearningAtHomeError, now: float) -> None:
        """All calls that wait for this peer end with `error`."""
        for call in [call for call in self.pending.values() if _same(call.peer, peer)]:
            del self.pending[call.call_id]
            self._end(call, error, now)

    def expire(self, now: float) -> list[PeerAddress]:
        """Ends the calls whose deadline has passed; returns the peers that did not answer."""
        silent: list[PeerAddress] = []
        if now < self.earliest:
            return silent
        for call in [call for call in self.pending.values() if call.deadline <= now]:
            del self.pending[call.call_id]
            assert call.peer is not None, "`add` has set it"
            waited_s = now - call.first_sent
            self._end(call, CallTimeout(f"{call.uid}: no answer in {waited_s:.2f} s", peer=call.peer.name), now)
            silent.append(call.peer)
        self.earliest = min((call.deadline for call in self.pending.values()), default=math.inf)
        return silent

    def abandon(self) -> None:
        """Forget everything; what still comes is late."""
        self.pending.clear()
        self.answers.clear()
        self.earliest = math.inf

    def _end(self, call: Call, error: LearningAtHomeError, now: float) -> None:
        assert call.peer is not None, "`add` has set it"
        self.answers.append(Answer(call, call.peer, None, [], error, now - call.sent))

    def _take(self, peer: PeerAddress, call_id: int) -> Call | None:
        """The pending call, taken out. Answers for another peer's call count as noise."""
        call = self.pending.get(call_id)
        if call is None or (call.peer is not peer and not _same(call.peer, peer)):
            self.late += 1
            return None
        del self.pending[call_id]
        return call


def _same(one: PeerAddress | None, other: PeerAddress) -> bool:
    return one is other or (one is not None and one.public_key == other.public_key)
