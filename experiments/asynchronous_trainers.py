"""Many trainers of one model on a virtual clock: each takes its parameters, works on a batch, and updates them late.

What is a trainer's own (first and last layer, gates; of a dense model all of it, where its blocks are not on nodes) is
shared by all of them: a batch's gradient is for the parameters as they were at its start, and is applied at its end.
Experts learn on their nodes, when a backward reaches them.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.dashboard import UNSEEN, Curve
from experiments.virtual_threads import VirtualThreads
from learning_at_home.errors import LearningAtHomeError

ROWS_PER_EVALUATION_CALL = 1_250


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows float32 [R, P] and labels int64 [R], to train and to test with."""

    train_rows: Tensor
    train_labels: Tensor
    test_rows: Tensor
    test_labels: Tensor


@dataclass(frozen=True, slots=True)
class Schedule:
    """How the trainers train. `late_s`: between a batch's gradient and its update; None: no time at all."""

    trainers: int
    batches: int  # of all trainers together
    rows_per_batch: int
    evaluate_every: int  # batches
    learning_rate: float
    clip_norm: float = 1.0
    step_s: float = 0.0  # of a trainer's own work on a batch
    late_s: Callable[[], float] | None = None


@dataclass(slots=True)
class Outcome:
    """What the trainers did. `points`: batches, loss and accuracy on test rows."""

    points: list[tuple[int, float, float]] = field(default_factory=list)
    staleness: Counter[int] = field(default_factory=Counter)  # updates between a batch's start and its own
    losses: list[float] = field(default_factory=list)  # on the batches, as they ended
    lost_batches: int = 0  # nobody answered, or a number was not finite: no update of the trainers' own parameters
    seconds: float = 0.0  # virtual


class AsynchronousTrainers:
    """`calm()`: around evaluations. The model's parameters are the shared ones. `curve` is told of every batch."""

    def __init__(
        self,
        threads: VirtualThreads,
        model: nn.Module,
        rows: Rows,
        schedule: Schedule,
        seed: int,
        calm: Callable[[], AbstractContextManager[None]] = nullcontext,
        curve: Curve = UNSEEN,
    ) -> None:
        self._threads = threads
        self._model = model
        self._rows = rows
        self._schedule = schedule
        self._seed = seed
        self._calm = calm
        self._curve = curve
        self._optimizer = torch.optim.Adam(model.parameters(), lr=schedule.learning_rate)
        self._started = self._finished = self._updates = 0
        self._outcome = Outcome()

    def train(self) -> Outcome:
        """All batches, by all trainers. Raises what one of them raises that is no failure of the swarm."""
        began = self._threads.monotonic_s()
        for number in range(self._schedule.trainers):
            self._threads.start(lambda number=number: self._run(number))  # type: ignore[misc]
        self._threads.run()
        self._outcome.seconds = self._threads.monotonic_s() - began
        return self._outcome

    def _run(self, number: int) -> None:
        schedule, order = self._schedule, torch.Generator().manual_seed(1_000 * self._seed + number)
        replica = copy.deepcopy(self._model)
        # Not all at once, which they never would be: spread over the time that a first batch might take.
        self._wait(random.Random(f"{self._seed} {number}").random() * max(schedule.step_s, 1e-3))
        while self._started < schedule.batches:
            self._started += 1
            self._load(replica)
            before = self._updates
            picks = torch.randint(len(self._rows.train_rows), (schedule.rows_per_batch,), generator=order)
            try:
                loss = cross_entropy(replica(self._rows.train_rows[picks]), self._rows.train_labels[picks])
                self._wait(schedule.step_s)
                loss.backward()
            except LearningAtHomeError:
                self._outcome.lost_batches += 1
                self._wait(schedule.step_s)
            else:
                if schedule.late_s is not None:
                    self._wait(schedule.late_s())
                self._update(replica, before)
                self._outcome.losses.append(loss.item())
            self._finished += 1
            if self._outcome.losses:
                self._curve(self._finished, loss=self._outcome.losses[-1])
            if self._finished % schedule.evaluate_every == 0 or self._finished == schedule.batches:
                self._evaluate()

    def _wait(self, seconds: float) -> None:
        if seconds > 0:
            self._threads.current().wait(self._threads.monotonic_s() + seconds)

    @torch.no_grad()
    def _load(self, replica: nn.Module) -> None:
        for own, shared in zip(replica.parameters(), self._model.parameters(), strict=True):
            own.copy_(shared)
            own.grad = None

    def _update(self, replica: nn.Module, before: int) -> None:
        for own, shared in zip(replica.parameters(), self._model.parameters(), strict=True):
            shared.grad, own.grad = own.grad, None
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), self._schedule.clip_norm)
        if not bool(torch.isfinite(norm)):
            self._outcome.lost_batches += 1
            return
        self._optimizer.step()
        self._outcome.staleness[self._updates - before] += 1
        self._updates += 1

    def _evaluate(self) -> None:
        right, loss, rows = 0, 0.0, self._rows
        with torch.no_grad(), self._calm():
            for first in range(0, len(rows.test_rows), ROWS_PER_EVALUATION_CALL):
                part = slice(first, first + ROWS_PER_EVALUATION_CALL)
                scores, labels = self._model(rows.test_rows[part]), rows.test_labels[part]
                right += int((scores.argmax(dim=1) == labels).sum())
                loss += cross_entropy(scores, labels, reduction="sum").item()
        total = len(rows.test_labels)
        self._outcome.points.append((self._finished, loss / total, right / total))
        self._curve(self._finished, test_loss=loss / total, test_accuracy=right / total)
