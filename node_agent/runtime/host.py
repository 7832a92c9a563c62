"""Experts behind a port: the transport's server, admission, and the device thread, wired together.

It knows nothing of the DHT or the coordinator. The server calls `on_work` in the data-plane thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from learning_at_home.clock import Clock
from learning_at_home.errors import NodeDraining
from learning_at_home.identity import Identity
from learning_at_home.project import MAX_BYTES_PER_REQUEST, MAX_ROWS_PER_REQUEST, ProjectRecord
from learning_at_home.transport.server import Server, TensorFrame, Ticket
from learning_at_home.wire.fingerprint import Fingerprint, fingerprint
from learning_at_home.wire.messages import CHUNK_BYTES, PLAIN_CHUNK_BYTES, Work
from node_agent.experts.hosted import HostedExperts
from node_agent.runtime.admission import check_specs, unpack
from node_agent.runtime.backward_window import NEW, PENDING, BackwardWindow
from node_agent.runtime.batch_runner import Job
from node_agent.runtime.batcher import Limits, Pending
from node_agent.runtime.device_thread import DeviceThread
from node_agent.runtime.statistics import Statistics

QUEUED_BYTES_PER_TENSOR = 700  # beside its numbers: what its objects take while it waits


@dataclass(frozen=True, slots=True)
class HostOptions:
    """How a host listens and computes."""

    host: str = "127.0.0.1"
    port: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    num_threads: int = 1
    unencrypted: bool = False
    max_rows: int = MAX_ROWS_PER_REQUEST
    limits: Limits = field(default_factory=Limits)


class Host:
    """Serves the experts that it is given from `start` to `stop`."""

    def __init__(
        self,
        identity: Identity,
        project: ProjectRecord,
        experts: HostedExperts,
        clock: Clock,
        options: HostOptions,
    ) -> None:
        self._clock = clock
        self.experts = experts
        self.statistics = Statistics(experts.by_uid)
        self.options = options
        self.backwards = BackwardWindow(clock.monotonic_s())
        self.device_thread = DeviceThread(
            experts,
            options.device,
            self.statistics,
            clock,
            options.limits,
            options.num_threads,
            self.backwards,
            chunk_bytes=PLAIN_CHUNK_BYTES if options.unencrypted else CHUNK_BYTES,
        )
        self.work_here = self.device_thread.work_here  # called in the data-plane thread, as on_work is
        self.server = Server(
            identity,
            project.id,
            self,
            clock,
            host=options.host,
            port=options.port,
            max_rows=options.max_rows,
            max_bytes=MAX_BYTES_PER_REQUEST,
            unencrypted=options.unencrypted,
        )
        self._max_rows = options.max_rows
        self._draining = False
        self.last_work_s = 0.0  # monotonic; written by the data plane

    def start(self) -> int:
        """Listen and compute; the port. Raises ConfigError when the port is taken."""
        self.server.start()
        self.device_thread.start(self.server)
        return self.server.port

    def on_work(self, ticket: Ticket, work: Work, frames: list[list[TensorFrame]]) -> None:
        """Admit one piece of work and queue it. What it raises is answered to this caller only, and counted there.

        A full node refuses by the header alone: it neither copies nor reads the tensors.
        """
        changes_weights = work.operation == "backward"
        if changes_weights and not self._is_new(ticket):
            return
        try:
            if self._draining:
                raise NodeDraining("this node is leaving and takes nothing new; ask another")
            self.last_work_s = ticket.received
            expert = self.experts.find(work.uid)
            rows = check_specs(expert, work, self._max_rows)
            num_bytes = rows * expert.row_bytes * (2 if expert.has_schema else len(work.tensors))
            num_bytes += QUEUED_BYTES_PER_TENSOR * len(work.tensors)
            self.device_thread.check_room(work.uid, rows, num_bytes)
            job = Job(ticket, unpack(expert, work, frames, ticket.codec), _fingerprint(frames[0][0]))
            self.device_thread.submit(
                Pending(work.uid, work.operation, rows, num_bytes, ticket.received, ticket.deadline, job)
            )
        except BaseException:
            if changes_weights:
                self.backwards.forget(ticket)  # it may come again
            raise

    def _is_new(self, ticket: Ticket) -> bool:
        """Whether this backward is to be computed; one that was computed is answered. Raises StaleRequest."""
        known = self.backwards.admit(ticket, ticket.waited_ms, round(self._clock.wall_s() * 1000))
        if known is NEW:
            return True
        if known is not PENDING:
            self.server.answer(ticket, known.message, known.frames)
        return False

    @property
    def refused(self) -> int:
        """Requests refused at the door or dropped from the queue, messages that were none, answers nobody took."""
        at_the_door = self.server.counters
        return self.statistics.refused + at_the_door.refused + at_the_door.malformed + at_the_door.dropped_answers

    def sweep(self) -> None:
        """Give back what is remembered in vain; to be called every few seconds."""
        self.backwards.sweep(round(self._clock.wall_s() * 1000), self._clock.monotonic_s())

    def drain(self, timeout_s: float) -> bool:
        """Take nothing new, finish the queue and make the updates that wait; whether it was done in time. Blocks."""
        self._draining = True
        return self.device_thread.finish(timeout_s)

    def stop(self) -> None:
        """End both threads, at once but for the batch that is being computed. May be called twice."""
        self._draining = True
        self.device_thread.stop()
        self.server.stop()

    def failure(self) -> BaseException | None:
        """Why a thread ended that should be running; None while both do."""
        for name, part in (("data plane", self.server), ("device", self.device_thread)):
            if not part.is_alive:
                return part.error or RuntimeError(f"the thread of the {name} ended")
        return None


def _fingerprint(frame: TensorFrame) -> Fingerprint:
    return fingerprint(frame if isinstance(frame, memoryview) else frame.buffer)
