"""A node without sockets and threads, on a virtual clock: the runtime's own admission, batcher and batch runner.

What is real: experts and their optimizers, checks of what comes in, oldest-first batches and groups, the window that
applies a backward once, answers as they travel. What is not: transport, device thread, and how long computing takes,
which is `batch_s` for every batch. Single-threaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from experiments.virtual_threads import VirtualThreads
from learning_at_home.dht.records import Record, sign_record
from learning_at_home.directory.announcement import Announcement, node_key
from learning_at_home.errors import DeadlinePassed, LearningAtHomeError
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.identity import Identity
from learning_at_home.project import MAX_ROWS_PER_REQUEST, ProjectRecord
from learning_at_home.transport.answers import failure_of
from learning_at_home.transport.server import TensorFrame, Ticket
from learning_at_home.wire.fingerprint import fingerprint
from learning_at_home.wire.framing import split_frames
from learning_at_home.wire.messages import CHUNK_BYTES, Failure, Reply, Request, Work
from node_agent.cells import claims_of
from node_agent.experts.hosted import HostedExperts
from node_agent.runtime.admission import check_specs, unpack
from node_agent.runtime.backward_window import NEW, PENDING, BackwardWindow
from node_agent.runtime.batch_runner import BatchRunner, Job
from node_agent.runtime.batcher import Batch, Batcher, Limits, Pending
from node_agent.runtime.statistics import Statistics
from node_agent.runtime.update_timer import UpdateTimer

CPU = torch.device("cpu")
LIFE_S = 24 * 3600.0  # of its announcement: as long as a record may live
Frames = Sequence[memoryview | bytes]


@dataclass(frozen=True, slots=True)
class Sent:
    """An answer on its way, and whose it is."""

    ticket: Ticket
    message: Reply | Failure
    frames: Frames


Deliver = Callable[[Sequence[Sent]], None]  # answers that were ready at one moment


def tensors_of(request: Request, frames: Frames) -> list[list[list[TensorFrame]]]:
    """The frames of each tensor of each piece of work."""
    parts: list[TensorFrame] = [memoryview(frame) for frame in frames]
    return split_frames([work.tensors for work in request.work], parts, codec=request.codec, data=request.data)


class _WholeRun(Statistics):
    """Keeps the staleness of all updates, where a node's own figures are of the last minute or two."""

    def __init__(self, uids: Iterable[str]) -> None:
        super().__init__(uids)
        self.staleness_of_all: Counter[int] = Counter()

    def trained(self, staleness: int, now: float) -> None:
        super().trained(staleness, now)
        self.staleness_of_all[staleness] += 1


class VirtualNode:
    """Experts of some cells. `fails(work)`: whether a piece of work is refused instead of being queued."""

    def __init__(
        self,
        threads: VirtualThreads,
        project: ProjectRecord,
        uids: Sequence[ExpertUid],
        number: int,
        *,
        batch_s: float,
        fails: Callable[[Work], bool],
        deliver: Deliver,
    ) -> None:
        self.identity = Identity(number.to_bytes(32, "big"))
        self.experts = HostedExperts.create(uids, project, CPU)
        self._threads = threads
        self._project = project
        self._batch_s = batch_s
        self._fails = fails
        self._deliver = deliver
        self._ready: list[Sent] = []
        self._is_computing = False
        self._batcher: Batcher[Job] = Batcher(Limits())
        self._backwards = BackwardWindow(threads.monotonic_s())
        statistics = _WholeRun(self.experts.by_uid)
        self.staleness = statistics.staleness_of_all  # of the updates: how many were so many updates old
        wait_s, updates = self._batcher.wait_s, UpdateTimer(self.experts, statistics)
        self._runner = BatchRunner(
            self.experts, CPU, statistics, threads, self._backwards, self, wait_s, CHUNK_BYTES, updates
        )
        self.failed = 0  # by `fails`

    def announcement(self) -> Record:
        """Signed, for the directory."""
        wall_ms = round(self._threads.wall_s() * 1000)
        said = Announcement(
            project=self._project.id,
            name=self.identity.name,
            endpoints=("tcp://127.0.0.1:1",),  # where nobody connects
            state="online",
            claims=claims_of(self._project, [expert.uid for expert in self.experts.serving()], wall_ms),
            issued_ms=wall_ms,
        )
        key = node_key(self._project.id, self.identity.public_key)
        expires_ms = wall_ms + round(LIFE_S * 1000)
        return sign_record(self.identity, key, said.to_bytes(), sequence=wall_ms, expires_ms=expires_ms)

    @property
    def updates(self) -> int:
        """Of all its experts."""
        return sum(expert.updates for expert in self.experts.by_uid.values())

    def receive(self, caller: bytes, request: Request, frames: Frames) -> None:
        """A message has arrived."""
        now = self._threads.monotonic_s()
        groups = tensors_of(request, frames)
        for work, of_work in zip(request.work, groups, strict=True):
            ticket = Ticket(
                caller,
                work.call_id,
                request.issued_ms,
                now + request.timeout_ms / 1000,
                now,
                b"",
                request.waited_ms,
                request.codec,
                request.reply_codec,
            )
            try:
                if self._fails(work):
                    self.failed += 1
                    raise DeadlinePassed(f"{work.uid}: this call was to fail")  # which nobody tries again
                self._admit(ticket, work, of_work)
            except LearningAtHomeError as error:
                self.fail(ticket, error)
        self._send_ready()
        self._compute()

    def _admit(self, ticket: Ticket, work: Work, frames: list[list[TensorFrame]]) -> None:
        """As node_agent.runtime.host.Host does it."""
        changes_weights = work.operation == "backward"
        if changes_weights:
            known = self._backwards.admit(ticket, ticket.waited_ms, round(self._threads.wall_s() * 1000))
            if known is not NEW:
                if known is not PENDING:
                    self.answer(ticket, known.message, known.frames)
                return
        try:
            expert = self.experts.find(work.uid)
            rows = check_specs(expert, work, MAX_ROWS_PER_REQUEST)
            num_bytes = rows * expert.row_bytes * len(work.tensors)
            first = frames[0][0]
            job = Job(
                ticket,
                unpack(expert, work, frames, ticket.codec),
                fingerprint(first if isinstance(first, memoryview) else first.buffer),
            )
            self._batcher.add(Pending(work.uid, work.operation, rows, num_bytes, ticket.received, ticket.deadline, job))
        except BaseException:
            if changes_weights:
                self._backwards.forget(ticket)
            raise

    def _compute(self) -> None:
        """The next batches, if it is free: weights change now, answers leave when the device is free again."""
        if self._is_computing:
            return
        now = self._threads.monotonic_s()
        batches = self._batcher.next_group(now, self.experts.group_of if self.experts.has_groups else None)
        if not batches:
            return
        for batch in batches:
            self._refuse_late(batch)
        batches = [batch for batch in batches if batch.requests]
        if len(batches) == 1:
            self._runner.run(batches[0], flush=False)
        elif batches:
            self._runner.run_group(batches, flush=False)
        self._is_computing = True
        self._threads.plan(now + self._batch_s, self._computed)

    def _computed(self) -> None:
        self._is_computing = False
        self._send_ready()
        self._compute()

    def _refuse_late(self, batch: Batch[Job]) -> None:
        for request in batch.late:
            ticket = request.payload.ticket
            if request.operation == "backward":
                ticket = self._backwards.forget(ticket)
            self.fail(ticket, DeadlinePassed(f"{request.uid}: the deadline passed in the queue"))

    def _send_ready(self) -> None:
        ready, self._ready = self._ready, []
        if ready:
            self._deliver(ready)

    # -- what the batch runner asks of a transport

    def answer(self, ticket: Ticket, message: Reply | Failure, frames: Frames = ()) -> None:
        self._ready.append(Sent(ticket, message, frames))

    def fail(self, ticket: Ticket, error: LearningAtHomeError) -> None:
        self.answer(ticket, failure_of(ticket.call_id, error))

    def flush(self) -> None:
        """They leave when the device is free."""

    def wake(self) -> None:
        """Nobody sleeps."""
