"""Compute batches, answer each caller with its own rows, and count what was done.

Called by one thread at a time: whichever the device thread's lock has given the batches to. Knows nothing of queues and
threads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import torch
from torch import Tensor

from learning_at_home.clock import Clock
from learning_at_home.errors import LearningAtHomeError
from learning_at_home.staleness import Forwards
from learning_at_home.transport.answers import failure_of
from learning_at_home.transport.server import Ticket
from learning_at_home.wire.fingerprint import Fingerprint
from learning_at_home.wire.framing import take_small
from learning_at_home.wire.messages import EVALUATIONS, Failure, Operation, Reply
from node_agent.experts.expert import Expert
from node_agent.experts.hosted import HostedExperts
from node_agent.runtime.backward_window import BackwardWindow
from node_agent.runtime.batcher import Batch, Pending
from node_agent.runtime.computation import compute, device_still_works, is_left_to_sender
from node_agent.runtime.group_computation import compute_group
from node_agent.runtime.outcomes import Outcome, not_finite
from node_agent.runtime.packing import PackedAnswer, looks_finite, packed_answer, packed_answers
from node_agent.runtime.statistics import Statistics
from node_agent.runtime.update_timer import UpdateTimer

log = logging.getLogger(__name__)


class Job(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What the batcher carries without looking into it."""

    ticket: Ticket
    tensors: tuple[Tensor, ...]
    rows: Fingerprint | None = None  # by which a backward's forward is known


class Answers(Protocol):
    """Where answers go: the transport's server, or a test's list."""

    def answer(self, ticket: Ticket, message: Reply | Failure, frames: Sequence[memoryview | bytes] = ()) -> None: ...

    def flush(self) -> None:
        """Send now what was answered, if this is the data plane's thread."""
        ...

    def fail(self, ticket: Ticket, error: LearningAtHomeError) -> None: ...

    def wake(self) -> None:
        """Let the data plane call `work_here`."""
        ...


class BatchRunner:
    """`wait_s`: how long a request that came now would wait, which is told with every answer."""

    def __init__(
        self,
        experts: HostedExperts,
        device: torch.device,
        statistics: Statistics,
        clock: Clock,
        backwards: BackwardWindow,
        answers: Answers,
        wait_s: Callable[[], float],
        chunk_bytes: int,
        updates: UpdateTimer,
    ) -> None:
        self._experts = experts
        self._device = device
        self._statistics = statistics
        self._clock = clock
        self._backwards = backwards
        self._answers = answers
        self._wait_s = wait_s
        self._chunk_bytes = chunk_bytes
        self._updates = updates
        self._forwards = Forwards()

    def run(self, batch: Batch[Job], *, flush: bool) -> float:
        """Serve one batch of at least one request; the seconds that computing took.

        `flush`: nothing else is about to be answered. Raises RuntimeError when the device does not work any more.
        """
        expert = self._experts.by_uid[batch.uid]
        monotonic_s = self._clock.monotonic_s
        started, updates_before = monotonic_s(), expert.updates
        outcomes = compute(expert, batch.operation, [request.payload.tensors for request in batch.requests])
        finished = monotonic_s()
        unseen = is_left_to_sender(expert, batch.operation, len(outcomes))
        self._answer(expert, batch, outcomes, started, finished, unseen=unseen, shared=len(outcomes) > 1)
        if flush:
            self._answers.flush()  # counting can wait
        self._count(expert, batch, outcomes, updates_before, unseen=unseen)
        self._note_gathered([expert], batch.operation, finished)
        return finished - started

    def run_group(self, batches: Sequence[Batch[Job]], *, flush: bool) -> float:
        """The same for batches of one operation that are computed as one."""
        operation = batches[0].operation
        work = [
            (self._experts.by_uid[batch.uid], [request.payload.tensors for request in batch.requests])
            for batch in batches
        ]
        started, updates_before = self._clock.monotonic_s(), [expert.updates for expert, _ in work]
        outcomes_by_batch = compute_group(self._experts.group_of(batches[0].uid, operation), operation, work)
        finished = self._clock.monotonic_s()
        served = list(zip(batches, work, outcomes_by_batch, strict=True))
        for batch, (expert, _), outcomes in served:
            unseen = is_left_to_sender(expert, operation, len(outcomes))
            self._answer(expert, batch, outcomes, started, finished, unseen=unseen, shared=True)
        if flush:
            self._answers.flush()
        for (batch, (expert, _), outcomes), updates in zip(served, updates_before, strict=True):
            unseen = is_left_to_sender(expert, operation, len(outcomes))
            self._count(expert, batch, outcomes, updates, unseen=unseen)
        self._note_gathered([expert for expert, _ in work], operation, finished)
        return finished - started

    def _count_staleness(self, request: Pending[Job], updates: int, now: float) -> None:
        """The expert had made so many updates when the request was computed."""
        forward = request.payload.ticket.caller, request.uid, request.payload.rows
        if request.operation == "forward":
            self._forwards.remember(forward, updates)
        elif (before := self._forwards.take(forward)) is not None and request.operation == "backward":
            self._statistics.trained(updates - before, now)

    def _note_gathered(self, experts: Sequence[Expert], operation: Operation, now: float) -> None:
        if operation == "backward" and self._updates.is_needed:
            for expert in experts:
                self._updates.observe(expert, now)

    def _answer(
        self,
        expert: Expert,
        batch: Batch[Job],
        outcomes: list[Outcome],
        started: float,
        finished: float,
        *,
        unseen: bool,
        shared: bool,
    ) -> None:
        """Answer every request. `unseen`: whether its outcome is finite; `shared`: it is a part of a larger tensor."""
        for position, request in enumerate(batch.requests):
            outcome = outcomes[position]
            ticket = request.payload.ticket
            if isinstance(outcome, Tensor):
                packed = packed_answer(outcome, ticket.reply_codec, self._chunk_bytes, unseen=unseen)
                if packed is None:
                    outcome = outcomes[position] = not_finite(expert, request.payload.tensors[0])
            elif isinstance(outcome, tuple):
                packed = packed_answers(outcome, ticket.reply_codec, self._chunk_bytes)
            message: Reply | Failure
            frames: Sequence[memoryview | bytes] = ()
            if isinstance(outcome, LearningAtHomeError):
                message = failure_of(ticket.call_id, outcome)
            else:
                assert packed is not None, "of a tensor"
                message, frames = self._reply(expert, request, packed, started, finished)
            if request.operation == "backward":
                ticket = self._backwards.answered(ticket, message, frames, finished, shared=shared)
            self._answers.answer(ticket, message, frames)

    def _reply(
        self, expert: Expert, request: Pending[Job], packed: PackedAnswer, started: float, finished: float
    ) -> tuple[Reply, Sequence[memoryview | bytes]]:
        specs, frames, codec = packed
        data, frames = take_small(frames)
        reply = Reply(
            request.payload.ticket.call_id,
            specs,
            queued_us=max(0, round((started - request.arrived) * 1e6)),
            computed_us=max(0, round((finished - started) * 1e6)),
            updates=expert.updates,
            load_ms=self._wait_s() * 1e3,
            codec=codec,
            data=data,
        )
        return reply, frames

    def _count(
        self, expert: Expert, batch: Batch[Job], outcomes: list[Outcome], updates_before: int, *, unseen: bool
    ) -> None:
        """`updates_before`: of the expert. Raises RuntimeError when a request failed since the device works no more."""
        operation = batch.operation
        flop_per_row = expert.flop_per_row[operation]
        now = self._clock.monotonic_s()
        failure: LearningAtHomeError | None = None
        for request, outcome in zip(batch.requests, outcomes, strict=True):
            if isinstance(outcome, LearningAtHomeError):
                failure = outcome
                self._statistics.failed(batch.uid)
            elif unseen and isinstance(outcome, Tensor) and not looks_finite(outcome):
                self._statistics.failed(batch.uid)
            else:
                rows, latency_s = request.rows, now - request.arrived
                self._statistics.answered(
                    batch.uid, operation, rows, rows * flop_per_row, latency_s, expert.updates, now
                )
                if expert.trained and request.payload.rows is not None and operation not in EVALUATIONS:
                    self._count_staleness(request, updates_before, now)
        if failure is not None:
            log.info("%s: %s", batch.uid, failure)
            if not device_still_works(self._device):
                raise RuntimeError(f"{self._device} fails since {batch.uid} ran {operation}; start the node again")
