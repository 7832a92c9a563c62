"""The demo's trainer, a process of its own: `python -m learning_at_home.demo.trainer http://127.0.0.1:8765/p/digits`.

It reads as a researcher's program would: connect, build a model with DMoE layers, train it, report. It speaks to the
process that started it by lines on standard output: see trainer_messages. Synchronous; experts step on their hosts.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import learning_at_home as lah
from learning_at_home.demo.digits import NUM_CLASSES, NUM_FEATURES, DigitsTask, make_digits_task
from learning_at_home.demo.recipe import GOAL_ACCURACY, HIDDEN_SIZE, LAYERS, NUM_CELLS, Recipe, learning_rate_factor
from learning_at_home.demo.trainer_messages import Finished, Progress, TrainerMessage, Waiting, encode_line
from learning_at_home.errors import LearningAtHomeError, NotEnoughExperts
from learning_at_home.parent_watch import exit_when_stdin_closes
from learning_at_home.process_exit import end_quickly

WAIT_FOR_EXPERTS_S = 90.0  # four nodes that start at once on two cores load torch in 10 to 20 s
WAITING_TOLD_EVERY_S = 0.5
RUN_NAME = "demo"  # on the dashboard
REPORT_INTERVAL_S = 0.3  # to the page, which shows it within 2 s, and to the bar
ROWS_PER_EVALUATION_CALL = 1_250  # a quarter of the test rows: few calls, each far below a layer's limit
LOSS_MEMORY = 0.9  # of the running mean: about the last ten steps

log = logging.getLogger(__name__)
Say = Callable[[TrainerMessage], None]


def build_model(layers: Sequence[nn.Module]) -> nn.Sequential:
    """Rows [R, 256] to class scores [R, 10]: all but the mixtures in the middle is one linear map at either end."""
    return nn.Sequential(nn.Linear(NUM_FEATURES, HIDDEN_SIZE), *layers, nn.Linear(HIDDEN_SIZE, NUM_CLASSES))


def accuracy_on_test(model: nn.Module, task: DigitsTask) -> float:
    """The share of all test rows whose class has the highest score."""
    with torch.no_grad():
        right = 0
        for first in range(0, len(task.test_rows), ROWS_PER_EVALUATION_CALL):
            part = slice(first, first + ROWS_PER_EVALUATION_CALL)
            right += int((model(task.test_rows[part]).argmax(dim=1) == task.test_labels[part]).sum())
    return right / len(task.test_labels)


class Training:
    """One run of the recipe on a model. Reads the clock; everything else is given."""

    def __init__(self, model: nn.Module, task: DigitsTask, recipe: Recipe) -> None:
        self._model = model
        self._task = task
        self._recipe = recipe
        self._optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
        self._random = torch.Generator().manual_seed(recipe.seed)
        self.step = 0
        self.loss = float("nan")
        self.accuracy: float | None = None
        self.goal_reached_at_step: int | None = None
        self.stepping_s = 0.0

    @property
    def rows(self) -> int:
        """Rows trained so far."""
        return self.step * self._recipe.rows_per_step

    @property
    def rows_per_second(self) -> float:
        """Of training; evaluations are not counted."""
        return self.rows / self.stepping_s if self.stepping_s else 0.0

    def train(self, after_step: Callable[[], None]) -> None:
        """All steps of the recipe, or as many as its time budget allows; ends with an evaluation."""
        started = time.monotonic()
        while self.step < self._recipe.steps and (elapsed_s := time.monotonic() - started) < self._recipe.budget_s:
            self._train_one_step(learning_rate_factor(self.step, elapsed_s, self._recipe))
            if self.step % self._recipe.evaluate_every_steps == 0:
                self._evaluate()
            after_step()
        if self.step % self._recipe.evaluate_every_steps:
            self._evaluate()

    def _train_one_step(self, rate_factor: float) -> None:
        started = time.monotonic()
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.learning_rate * rate_factor
        picks = torch.randint(len(self._task.train_rows), (self._recipe.rows_per_step,), generator=self._random)
        scores = self._model(self._task.train_rows[picks])
        loss: Tensor = cross_entropy(
            scores, self._task.train_labels[picks], label_smoothing=self._recipe.label_smoothing
        )
        self._optimizer.zero_grad()
        loss.backward()  # also trains the experts, on their hosts
        nn.utils.clip_grad_norm_(self._model.parameters(), self._recipe.clip_norm)
        self._optimizer.step()
        self.loss = LOSS_MEMORY * self.loss + (1 - LOSS_MEMORY) * loss.item() if self.step else loss.item()
        self.step += 1
        self.stepping_s += time.monotonic() - started

    def _evaluate(self) -> None:
        self.accuracy = accuracy_on_test(self._model, self._task)
        if self.goal_reached_at_step is None and self.accuracy >= GOAL_ACCURACY:
            self.goal_reached_at_step = self.step


def train_on_swarm(project_url: str, recipe: Recipe, say: Say) -> Finished:
    """Train the demo's model on a living swarm. Raises a LearningAtHomeError when there is none or it is lost."""
    torch.manual_seed(recipe.seed)
    task = make_digits_task(recipe.seed)
    with lah.Swarm.connect(project_url, run=RUN_NAME) as swarm:
        _wait_for_experts(swarm, say)
        model = build_model([lah.DMoE(swarm, layer=layer, k_best=recipe.k_best) for layer in LAYERS])
        training = Training(model, task, recipe)
        reporter = _Reporter(swarm, training, recipe, say)
        started = time.monotonic()
        training.train(reporter.after_step)
        reporter.report()
        stats = swarm.stats()
        return Finished(
            accuracy=training.accuracy or 0.0,
            steps=training.step,
            rows_per_second=training.rows_per_second,
            calls=stats.calls,
            failures=stats.failures,
            goal_reached_at_step=training.goal_reached_at_step,
            seconds=time.monotonic() - started,
        )


def main(argv: list[str] | None = None) -> int:
    """0 after the training; 1 when the swarm failed it, with the reason on standard error."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    end_quickly()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave through `with Swarm...`, as at Ctrl-C
    if options.exit_with_parent:
        exit_when_stdin_closes()
    torch.set_num_threads(1)
    recipe = Recipe(steps=options.steps, seed=options.seed, budget_s=options.budget_s)
    try:
        finished = train_on_swarm(options.project_url, recipe, lambda message: _write(sys.stdout, message))
    except LearningAtHomeError as error:
        log.error("%s: %s", type(error).__name__, error)
        return 1
    except KeyboardInterrupt:
        return 130
    _write(sys.stdout, finished)
    return 0


class _Reporter:
    """Tells the page and the parent where the training stands, a few times per second at most."""

    def __init__(self, swarm: lah.Swarm, training: Training, recipe: Recipe, say: Say) -> None:
        self._swarm = swarm
        self._training = training
        self._recipe = recipe
        self._say = say
        self._started = time.monotonic()
        self._last_at = float("-inf")

    def after_step(self) -> None:
        now = time.monotonic()
        if now - self._last_at >= REPORT_INTERVAL_S:
            self._last_at = now
            self.report()

    def report(self) -> None:
        training, recipe = self._training, self._recipe
        metrics = {"loss": training.loss, "rows": float(training.rows)}
        if training.accuracy is not None:
            metrics["accuracy"] = training.accuracy
        self._swarm.report(training.step, **metrics)
        elapsed_s = time.monotonic() - self._started
        by_steps_s = elapsed_s / max(1, training.step) * (recipe.steps - training.step)
        remaining_s = max(0.0, min(by_steps_s, recipe.budget_s - elapsed_s))
        self._say(
            Progress(
                step=training.step,
                steps=recipe.steps,
                loss=training.loss,
                accuracy=training.accuracy,
                rows_per_second=training.rows_per_second,
                remaining_s=remaining_s,
            )
        )


def _wait_for_experts(swarm: lah.Swarm, say: Say) -> None:
    """Until all are alive. When some stay away: go on with those there are, as long as every layer has one."""
    wanted = NUM_CELLS * len(LAYERS)
    deadline, alive = time.monotonic() + WAIT_FOR_EXPERTS_S, 0
    while time.monotonic() < deadline:
        alive = sum(swarm.layer(layer).num_alive for layer in LAYERS)
        say(Waiting(alive=alive, wanted=wanted))
        if alive == wanted:
            return
        with contextlib.suppress(NotEnoughExperts):
            swarm.wait_until_alive(timeout_s=WAITING_TOLD_EVERY_S)
    log.warning("after %.0f s only %d of %d experts are alive: going on with those", WAIT_FOR_EXPERTS_S, alive, wanted)
    swarm.wait_until_alive(num_experts=1, timeout_s=0.0)


def _write(stream: TextIO, message: TrainerMessage) -> None:
    stream.write(encode_line(message) + "\n")
    stream.flush()


def _parser() -> argparse.ArgumentParser:
    defaults = Recipe()
    parser = argparse.ArgumentParser(prog="learning_at_home.demo.trainer", description="Train the demo's model.")
    parser.add_argument("project_url", help="http://127.0.0.1:8765/p/digits")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--budget-s", type=float, default=defaults.budget_s, help="seconds of training at most")
    parser.add_argument("--exit-with-parent", action="store_true", help="end when standard input is closed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
