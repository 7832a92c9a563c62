"""Group waiting requests into batches for one device, the oldest first.

Pure: knows row counts, bytes and times; nothing of tensors, sockets or threads. Requests of one expert and operation
wait in one lane. The lane whose first request is the oldest is computed next, together with what else waits in it, up
to a limit; where lanes may be computed as one group, together with the other lanes of its group, the oldest first. The
queue is bounded by rows and by bytes; a full one refuses. Policy: docs/decisions/0003-node-runtime.md and
docs/decisions/0007-grouped-experts.md.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from learning_at_home.errors import NodeOverloaded
from learning_at_home.wire.messages import Operation

PayloadT = TypeVar("PayloadT")

MIN_RETRY_S, MAX_RETRY_S = 0.05, 5.0  # a hint below would be a busy loop, one above sends callers away for good
SMOOTHING = 0.1  # weight of the newest batch in the measured time per row: about the last ten batches


class Pending(msgspec.Struct, Generic[PayloadT], frozen=True, eq=False, gc=False):
    """One request that waits. A struct, because one is made for every request."""

    uid: str
    operation: Operation
    rows: int
    size_bytes: int
    arrived: float  # monotonic seconds
    deadline: float
    payload: PayloadT


class Batch(msgspec.Struct, Generic[PayloadT], frozen=True, eq=False, gc=False):
    """What is computed together."""

    uid: str
    operation: Operation
    requests: Sequence[Pending[PayloadT]]  # may be empty, when all that waited was late
    late: Sequence[Pending[PayloadT]]  # their deadline has passed: not to be computed
    rows: int  # of `requests`, as the next
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a node's queue and batches. One request always makes a batch, whatever its size."""

    batch_rows: int = 4_096
    batch_bytes: int = 64 * 1024 * 1024
    group_rows: int = 16_384  # of all lanes of a group: 64 experts with 256 rows each
    group_bytes: int = 128 * 1024 * 1024  # these at hidden size 1,024, inputs and gradients
    queued_rows: int = 65_536  # sixteen of the largest batches
    queued_bytes: int = 256 * 1024 * 1024


_Lane = tuple[str, Operation]
# Lanes with one answer, which is not None, may be computed as one group.
GroupOf = Callable[[str, Operation], object]


class Batcher(Generic[PayloadT]):
    """The queue of one device. Not thread-safe: its driver locks."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.queued_rows = 0
        self.queued_bytes = 0
        self._arrived: list[Pending[PayloadT]] = []  # not in their lanes yet: one that waits alone needs none
        self._lanes: dict[_Lane, deque[Pending[PayloadT]]] = {}
        self._oldest: list[tuple[float, int, _Lane]] = []  # heap with one entry per lane: when its first request came
        self._sequence = 0  # requests of one moment keep their order
        self._seconds_per_row = 0.0
        self._next_deadline = float("inf")  # no later than the earliest deadline that waits

    def add(self, request: Pending[PayloadT]) -> None:
        """Queue a request. Raises NodeOverloaded when it does not fit."""
        if self.queued_rows:
            self.check_room(request.uid, request.rows, request.size_bytes)
        self._arrived.append(request)
        self.queued_rows += request.rows
        self.queued_bytes += request.size_bytes
        if request.deadline < self._next_deadline:
            self._next_deadline = request.deadline

    def check_room(self, uid: str, rows: int, size_bytes: int) -> None:
        """Raises NodeOverloaded, with a hint when to come again, when a request of this size does not fit."""
        if self.queued_rows and (
            self.queued_rows + rows > self.limits.queued_rows
            or self.queued_bytes + size_bytes > self.limits.queued_bytes
        ):
            raise NodeOverloaded(
                f"{uid}: this node's queue is full ({self.queued_rows:,} rows wait); ask again later or another expert",
                retry_after_s=min(MAX_RETRY_S, max(MIN_RETRY_S, self.wait_s() / 2)),
            )

    def next_batch(self, now: float) -> Batch[PayloadT] | None:
        """The batch to compute now; None when nothing waits."""
        arrived = self._arrived
        if len(arrived) == 1 and not self._oldest and arrived[0].deadline > now:
            self.queued_rows = self.queued_bytes = 0
            request = arrived.pop()
            return Batch(request.uid, request.operation, (request,), (), request.rows, request.size_bytes)
        if arrived:
            self._line_up()
        if not self._oldest:
            return None
        lane = heapq.heappop(self._oldest)[2]
        return self._take(lane, now, self.limits.batch_rows, self.limits.batch_bytes)

    def next_group(self, now: float, group_of: GroupOf | None) -> list[Batch[PayloadT]]:
        """The batches to compute now as one: the next one, and those whose lanes are of its group; maybe none.

        `group_of`: None where nothing is grouped.
        The oldest lanes first, each at most a batch; those that would exceed the limits of a group wait.
        """
        first = self.next_batch(now)
        if first is None:
            return []
        if group_of is None or not self._oldest or (group := group_of(first.uid, first.operation)) is None:
            return [first]
        batches = [first]
        rows_left = self.limits.group_rows - first.rows
        bytes_left = self.limits.group_bytes - first.size_bytes
        entries, self._oldest = sorted(self._oldest), []
        for entry in entries:
            lane = entry[2]
            oldest = self._lanes[lane][0]
            fits = oldest.rows <= rows_left and oldest.size_bytes <= bytes_left
            if not fits or lane[1] != first.operation or lane[0] == first.uid or group_of(*lane) != group:
                heapq.heappush(self._oldest, entry)
                continue
            batch = self._take(
                lane, now, min(rows_left, self.limits.batch_rows), min(bytes_left, self.limits.batch_bytes)
            )
            batches.append(batch)
            rows_left -= batch.rows
            bytes_left -= batch.size_bytes
        return batches

    def drop_late(self, now: float) -> list[Pending[PayloadT]]:
        """Remove what is past its deadline, so that it takes no room. Costs nothing while nothing can be late."""
        if now < self._next_deadline:
            return []
        late = self._remove(lambda request: request.deadline <= now)  # which has put all that is left into lanes
        deadlines = (request.deadline for waiting in self._lanes.values() for request in waiting)
        self._next_deadline = min(deadlines, default=float("inf"))
        return late

    def drop_all(self) -> list[Pending[PayloadT]]:
        """Empty the queue."""
        return self._remove(lambda request: True)

    def observe(self, rows: int, seconds: float) -> None:
        """Tell how long a batch took: what `wait_s` and the retry hint rest on."""
        if rows > 0:
            measured = seconds / rows
            first = self._seconds_per_row == 0.0
            self._seconds_per_row = (
                measured if first else self._seconds_per_row + SMOOTHING * (measured - self._seconds_per_row)
            )

    def wait_s(self) -> float:
        """How long a request that came now would wait, as the last batches tell."""
        return self.queued_rows * self._seconds_per_row

    def _take(self, lane: _Lane, now: float, most_rows: int, most_bytes: int) -> Batch[PayloadT]:
        """The oldest of a lane whose entry has left the heap; what does not fit stays, with a new entry."""
        waiting = self._lanes[lane]
        if len(waiting) == 1 and waiting[0].deadline > now:  # nearly always: many experts, each asked once
            del self._lanes[lane]
            request = waiting[0]
            self.queued_rows -= request.rows
            self.queued_bytes -= request.size_bytes
            return Batch(lane[0], lane[1], (request,), (), request.rows, request.size_bytes)
        taken: list[Pending[PayloadT]] = []
        late: list[Pending[PayloadT]] = []
        rows = size_bytes = 0
        while waiting:
            request = waiting[0]
            if request.deadline <= now:
                late.append(waiting.popleft())
                self._forget(request)
                continue
            if taken and (rows + request.rows > most_rows or size_bytes + request.size_bytes > most_bytes):
                break
            taken.append(waiting.popleft())
            rows += request.rows
            size_bytes += request.size_bytes
        if waiting:
            self._push(waiting[0].arrived, lane)
        else:
            del self._lanes[lane]
        self.queued_rows -= rows
        self.queued_bytes -= size_bytes
        return Batch(lane[0], lane[1], taken, late, rows, size_bytes)

    def _line_up(self) -> None:
        """Put what has arrived into its lanes."""
        for request in self._arrived:
            lane = (request.uid, request.operation)
            waiting = self._lanes.get(lane)
            if waiting is None:
                self._lanes[lane] = deque((request,))
                self._push(request.arrived, lane)
            else:
                waiting.append(request)
        self._arrived.clear()

    def _push(self, arrived: float, lane: _Lane) -> None:
        heapq.heappush(self._oldest, (arrived, self._sequence, lane))
        self._sequence += 1

    def _forget(self, request: Pending[PayloadT]) -> None:
        self.queued_rows -= request.rows
        self.queued_bytes -= request.size_bytes

    def _remove(self, unwanted: Callable[[Pending[PayloadT]], bool]) -> list[Pending[PayloadT]]:
        self._line_up()
        removed = [request for waiting in self._lanes.values() for request in waiting if unwanted(request)]
        for request in removed:
            self._forget(request)
        kept = {lane: deque(r for r in waiting if not unwanted(r)) for lane, waiting in self._lanes.items()}
        self._lanes = {lane: waiting for lane, waiting in kept.items() if waiting}
        self._oldest = []
        for lane, waiting in sorted(self._lanes.items(), key=lambda entry: entry[1][0].arrived):
            self._push(waiting[0].arrived, lane)
        return removed
