"""A node's runtime without its network: rounds of work for all experts from the admission queue to the answers.

Run by benchmarks.sides. Work for all experts is queued while the work before it is computed, as from trainers that do
not wait for each other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.local_expert import LocalExpert, assert_close
from benchmarks.projects import PREFIX, project_of
from benchmarks.runtime_batches import Settings, prepare_torch, rows_of_experts
from benchmarks.worker import Work, serve, settings_of
from learning_at_home.clock import SystemClock
from learning_at_home.errors import LearningAtHomeError
from learning_at_home.transport.server import Ticket
from learning_at_home.wire.messages import Failure, Operation, Reply
from node_agent.experts.hosted import HostedExperts
from node_agent.runtime.backward_window import BackwardWindow
from node_agent.runtime.batch_runner import Job
from node_agent.runtime.batcher import Limits, Pending
from node_agent.runtime.device_thread import DeviceThread
from node_agent.runtime.statistics import Statistics

TIMEOUT_S = 60.0
TOLERANCE, TF32_TOLERANCE = 1e-3, 2e-2  # TF32 keeps 10 bits of a factor


class Answers:
    """Counts the answers of the rounds; keeps the tensors of those that are asked for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._left = 0
        self._woken = False
        self._error: str | None = None
        self.kept: dict[int, Tensor] | None = None

    def expect(self, count: int) -> None:
        with self._changed:
            self._left += count

    def wait_until(self, left: int) -> bool:
        """Whether only so many are left; False: there is work for the data plane. Raises RuntimeError on a failure."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._left <= left or self._woken or self._error, TIMEOUT_S):
                raise RuntimeError(f"{self._left} answers are missing after {TIMEOUT_S:g} s")
            if self._error is not None:
                raise RuntimeError(self._error)
            self._woken = False
            return self._left <= left

    def answer(self, ticket: Ticket, message: Reply | Failure, frames: Sequence[memoryview | bytes] = ()) -> None:
        with self._changed:
            if isinstance(message, Failure):
                self._error = message.message
            elif self.kept is not None:
                content = bytearray(message.data or b"".join(frames))
                self.kept[ticket.call_id] = torch.frombuffer(content, dtype=torch.float32)
            self._left -= 1
            self._changed.notify_all()

    def flush(self) -> None:
        pass

    def fail(self, ticket: Ticket, error: LearningAtHomeError) -> None:
        with self._changed:
            self._error = str(error)
            self._changed.notify_all()

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()


class OurRuntime:
    """The device thread with its queue, and the window of backwards; no socket."""

    def __init__(self, settings: Settings) -> None:
        prepare_torch(settings)
        self._settings = settings
        self._tolerance = TF32_TOLERANCE if settings.tf32 else TOLERANCE
        device = torch.device(settings.device)
        self._clock = SystemClock()
        self._project = project_of(settings.architecture, settings.hidden_size, (settings.num_experts,))
        self._uids = list(self._project.layer(PREFIX).cells.uids(PREFIX))
        experts = HostedExperts.create(self._uids, self._project, device)
        self._backwards = BackwardWindow(self._clock.monotonic_s())
        self._device_thread = DeviceThread(
            experts, device, Statistics(experts.by_uid), self._clock, Limits(), 1, self._backwards
        )
        self._answers = Answers()
        self._device_thread.start(self._answers)
        self._rows = [torch.randn(count, settings.hidden_size) for count in rows_of_experts(settings)]
        self._gradients = [torch.randn_like(rows) for rows in self._rows]
        self._next_id = 0

    def check(self) -> None:
        """Every answer of a first round, before any expert has stepped."""
        forward, backward = self._answers_to("forward"), self._answers_to("backward")
        for uid, rows, gradient, answer, of_rows in zip(
            self._uids, self._rows, self._gradients, forward, backward, strict=True
        ):
            local = LocalExpert(self._project, uid, self._settings.device)
            on_device = rows.to(self._settings.device), gradient.to(self._settings.device)
            plain, plain_of_rows = local.forward(on_device[0]).cpu(), local.gradients(*on_device)[0].cpu()
            assert_close(f"the output of {uid}", answer.view_as(plain), plain, self._tolerance)
            assert_close(f"the gradient of {uid}", of_rows.view_as(plain), plain_of_rows, self._tolerance)

    def ready(self) -> None:
        """It waits for nobody."""

    def measure(self, work: Work) -> float:
        """Seconds per round."""
        operations: tuple[Operation, ...] = ("forward",) if work.name == "forward" else ("forward", "backward")
        self._run(operations, work.warm_s)
        return self._run(operations, work.budget_s)

    def close(self) -> None:
        self._device_thread.stop()

    def _run(self, operations: tuple[Operation, ...], for_s: float) -> float:
        started = time.perf_counter()
        num_rounds = 0
        while num_rounds == 0 or time.perf_counter() - started < for_s:
            for operation in operations:
                self._submit(operation)
                self._finish(len(self._uids))
            num_rounds += 1
        self._finish(0)
        return (time.perf_counter() - started) / num_rounds

    def _answers_to(self, operation: Operation) -> list[Tensor]:
        """One flat tensor per expert, of one round."""
        self._answers.kept = {}
        first = self._next_id
        self._submit(operation)
        self._finish(0)
        kept, self._answers.kept = self._answers.kept, None
        return [kept[first + number] for number in range(len(self._uids))]

    def _submit(self, operation: Operation) -> None:
        """One request for each expert, as the data plane would after admission."""
        self._answers.expect(len(self._uids))
        for number, uid in enumerate(self._uids):
            now = self._clock.monotonic_s()
            wall_ms = round(self._clock.wall_s() * 1000)
            ticket = Ticket(b"benchmark".ljust(32), self._next_id, wall_ms, now + TIMEOUT_S, now, b"benchmark")
            self._next_id += 1
            tensors: tuple[Tensor, ...] = (self._rows[number],)
            if operation == "backward":
                tensors = (self._rows[number], self._gradients[number])
                self._backwards.admit(ticket, 0, wall_ms)
            num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self._device_thread.submit(
                Pending(
                    str(uid), operation, len(tensors[0]), num_bytes, now, ticket.deadline, payload=Job(ticket, tensors)
                )
            )
        self._work_here()

    def _finish(self, left: int) -> None:
        while not self._answers.wait_until(left):
            self._work_here()

    def _work_here(self) -> None:
        """This thread stands in for the data plane's, which computes what is tiny on a CPU."""
        while self._device_thread.work_here():
            pass


if __name__ == "__main__":
    serve(lambda: OurRuntime(settings_of(Settings)))
