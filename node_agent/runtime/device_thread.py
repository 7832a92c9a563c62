"""The one thread that runs torch on a device: takes a batch, and has it computed and answered.

Threaded: other threads only submit. On the CPU, a batch that is known to take less than a hop to another thread costs
is computed by the data plane's thread itself; never by both at a time. When the thread dies it keeps the reason in
`error`, for the agent to end the process with.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence

import torch

from learning_at_home.clock import Clock
from learning_at_home.errors import DeadlinePassed, LearningAtHomeError, NodeDraining, NodeOverloaded
from learning_at_home.wire.messages import CHUNK_BYTES
from node_agent.experts.hosted import HostedExperts
from node_agent.runtime.backward_window import BackwardWindow
from node_agent.runtime.batch_runner import Answers, BatchRunner, Job
from node_agent.runtime.batcher import Batch, Batcher, Limits, Pending
from node_agent.runtime.costs import Costs
from node_agent.runtime.statistics import Statistics
from node_agent.runtime.update_timer import UpdateTimer

log = logging.getLogger(__name__)

QUICK_S = 1e-3  # a hop there and back takes a third of that, and no message waits longer than this for the data plane
CLAIMED_AT_ONCE = 16  # quick batches at most: what they take is expected, not known
STOP_TIMEOUT_S = 1.0  # for the batch that is being computed; the thread is a daemon and holds nobody up


class DeviceThread:
    """Owns the experts' tensors from `start` to `stop`."""

    def __init__(
        self,
        experts: HostedExperts,
        device: torch.device,
        statistics: Statistics,
        clock: Clock,
        limits: Limits,
        num_threads: int,
        backwards: BackwardWindow,
        quick_s: float = QUICK_S,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        """`quick_s`: batches expected to take less are the data plane's; 0: none are. `chunk_bytes`: of answers."""
        self._chunk_bytes = chunk_bytes
        self._quick_s = quick_s if device.type == "cpu" else 0.0  # a GPU is one thread's
        self._experts = experts
        self._device = device
        self._statistics = statistics
        self._clock = clock
        self._num_threads = num_threads
        self._backwards = backwards
        self._batcher: Batcher[Job] = Batcher(limits)
        self._lock = threading.Lock()
        self._work_came = threading.Condition(self._lock)  # for the thread alone: it is not woken for others' news
        self._went_idle = threading.Condition(self._lock)
        self._stopping = False
        self._awaited = 0  # how many wait until there is nothing to do
        self._computing = False  # by whichever thread
        # Taken out of the queue to be computed at once, and left to the thread that should do it.
        self._next: list[Batch[Job]] = []
        self._group_of = experts.group_of if experts.has_groups else None
        self._costs = Costs()
        self._updates = UpdateTimer(experts, statistics)
        self._answers: Answers | None = None
        self._runner: BatchRunner  # made by start
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"device {device}", daemon=True)

    def start(self, answers: Answers) -> None:
        self._answers = answers
        self._runner = BatchRunner(
            self._experts,
            self._device,
            self._statistics,
            self._clock,
            self._backwards,
            answers,
            self._batcher.wait_s,
            self._chunk_bytes,
            self._updates,
        )
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def queued_rows(self) -> int:
        return self._batcher.queued_rows

    def load_s(self) -> float:
        """How long a request that came now would wait."""
        return self._batcher.wait_s()

    def check_room(self, uid: str, rows: int, size_bytes: int) -> None:
        """Raises NodeOverloaded when a request of this size does not fit. What is late then makes room."""
        if not self._batcher.queued_rows:
            return  # there is, and only the data plane, which asks, takes it
        late: list[Pending[Job]] = []
        try:
            with self._lock:
                try:
                    self._batcher.check_room(uid, rows, size_bytes)
                except NodeOverloaded:
                    late = self._batcher.drop_late(self._clock.monotonic_s())
                    self._batcher.check_room(uid, rows, size_bytes)
        finally:
            self._refuse_late(late)

    def submit(self, request: Pending[Job]) -> None:
        """Queue admitted work; `work_here` gets it going. Raises NodeOverloaded, or NodeDraining after `stop`."""
        with self._lock:
            if self._stopping:
                raise NodeDraining("this node is stopping")
            self._batcher.add(request)

    def work_here(self) -> bool:
        """Compute what is quick in this thread, for `quick_s` at most; let the device's thread do the rest.

        Whether to be called again: more waits, and nobody computes.
        """
        if not self._batcher.queued_rows and not self._next:
            return False
        with self._lock:
            batches = self._claim_quick()
        if not batches:
            return False
        for batch in batches:
            if batch.late:
                self._refuse_late(batch.late)
            if batch.requests:
                self._serve_one(batch, is_last=batch is batches[-1])
        with self._lock:
            self._computing = False
            if self._is_update_due():
                self._work_came.notify()
            if self._next or self._batcher.queued_rows:
                return True
            if self._stopping or self._awaited:
                self._went_idle.notify_all()
            return False

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Whether everything queued was computed within the time."""
        with self._lock:
            self._awaited += 1
            try:
                return self._went_idle.wait_for(
                    lambda: (
                        not self._thread.is_alive()
                        or not (self._computing or self._next or self._batcher.queued_rows or self._is_update_due())
                    ),
                    timeout_s,
                )
            finally:
                self._awaited -= 1

    def finish(self, timeout_s: float) -> bool:
        """The same; and experts make the update for which they gather gradients, without waiting for more."""
        with self._lock:
            self._updates.finish()
            self._work_came.notify()
        return self.wait_until_idle(timeout_s)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End after the batch that is being computed; what still waits is refused. May be called twice.

        Experts make the update for which they gather gradients.
        """
        with self._lock:
            left = self._end()
        for request in left:
            self._fail(request, NodeDraining(f"{request.uid}: this node stopped before it came to this request"))
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            torch.set_num_threads(self._num_threads)
            while (batches := self._next_batches()) is not None:
                self._serve(batches)
            self._make_last_updates()
        except BaseException as error:
            self.error = error
            log.exception("the thread of %s stopped", self._device)
        finally:
            with self._lock:
                self._computing = False
                left = self._end()
            for request in left:
                self._fail(request, NodeDraining(f"{request.uid}: this node's device stopped"))

    def _make_last_updates(self) -> None:
        with self._lock:
            self._updates.finish()
            if not self._went_idle.wait_for(lambda: not self._computing, STOP_TIMEOUT_S):
                return
        self._updates.step_due(self._clock.monotonic_s())

    def _next_batches(self) -> list[Batch[Job]] | None:
        """The next ones that are not the data plane's, as soon as there are some; None when it is time to stop.

        An empty list: updates are due.
        """
        with self._lock:
            self._computing = False
            while not self._stopping:
                if not self._computing and self._is_update_due():
                    self._computing = True
                    return []
                if batches := self._claim_slow():
                    return batches
                self._went_idle.notify_all()  # perhaps: whoever waits for it looks himself
                self._work_came.wait(self._updates.wait_s(self._clock.monotonic_s()))
            return None

    def _is_update_due(self) -> bool:
        return self._updates.is_needed and self._updates.is_due(self._clock.monotonic_s())

    def _claim_slow(self) -> list[Batch[Job]]:
        """What the device's thread computes next, together; nothing when it is quick: then the data plane is told."""
        batches, expected_s = self._look()
        if not batches:
            return []
        if expected_s < self._quick_s:
            if self._answers is not None:
                self._answers.wake()
            return []
        self._next = []
        self._computing = True
        return batches

    def _claim_quick(self) -> list[Batch[Job]]:
        """What the data plane computes next, one after the other, in `quick_s` together.

        Taken at once, because to come back for each of many experts' batches costs as much as a small one. Nothing when
        what is next is not quick, as updates that are due may not be: then the device's thread is told.
        """
        if self._is_update_due():
            self._work_came.notify()
            return []
        claimed: list[Batch[Job]] = []
        left_s = self._quick_s
        while len(claimed) < CLAIMED_AT_ONCE and (self._batcher.queued_rows or self._next):
            batches, expected_s = self._look()
            if expected_s >= left_s:  # infinite when nothing is left
                if batches and expected_s >= self._quick_s and not claimed:
                    self._work_came.notify()
                break
            self._next = []
            left_s -= expected_s
            claimed += batches
        if claimed:
            self._computing = True
        return claimed

    def _look(self) -> tuple[list[Batch[Job]], float]:
        """What is next, if nobody computes, and how long it is expected to take; infinity where that is unknown."""
        if self._computing or self._stopping:
            return [], math.inf
        batches = self._next = self._next or self._batcher.next_group(self._clock.monotonic_s(), self._group_of)
        if len(batches) != 1:
            return batches, math.inf
        batch = batches[0]
        layer = self._experts.by_uid[batch.uid].layer.prefix
        return batches, self._costs.expected_s(layer, batch.operation, batch.rows)

    def _end(self) -> list[Pending[Job]]:
        """With the lock held: take nothing more. Returns what waits."""
        self._stopping = True
        left = self._batcher.drop_all()
        left = [request for batch in self._next for request in (*batch.requests, *batch.late)] + left
        self._next = []
        self._work_came.notify()
        self._went_idle.notify_all()
        return left

    def _serve(self, batches: Sequence[Batch[Job]]) -> None:
        """Compute them, several as a group, and answer each request."""
        if not batches:
            self._updates.step_due(self._clock.monotonic_s())
            return
        for batch in batches:
            self._refuse_late(batch.late)
        batches = [batch for batch in batches if batch.requests]
        if len(batches) == 1:
            self._serve_one(batches[0], is_last=True)
        elif batches:
            seconds = self._runner.run_group(batches, flush=not self._batcher.queued_rows)
            self._batcher.observe(sum(batch.rows for batch in batches), seconds)

    def _serve_one(self, batch: Batch[Job], *, is_last: bool) -> None:
        """`is_last`: of what was claimed."""
        seconds = self._runner.run(batch, flush=is_last and not self._batcher.queued_rows)
        self._batcher.observe(batch.rows, seconds)
        self._costs.observe(self._experts.by_uid[batch.uid].layer.prefix, batch.operation, batch.rows, seconds)

    def _refuse_late(self, late: Sequence[Pending[Job]]) -> None:
        for request in late:
            waited_s = self._clock.monotonic_s() - request.arrived
            self._fail(
                request, DeadlinePassed(f"{request.uid}: the deadline passed after {waited_s:.2f} s in the queue")
            )

    def _fail(self, request: Pending[Job], error: LearningAtHomeError) -> None:
        """It was not computed, and will not be."""
        self._statistics.refuse()
        ticket = request.payload.ticket
        if request.operation == "backward":
            ticket = self._backwards.forget(ticket)
        if self._answers is not None:
            self._answers.fail(ticket, error)
