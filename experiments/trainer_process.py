"""One trainer of `experiments.several_trainers`, a process of its own: it prints a JSON object a line.

It starts from what the swarm holds, trains its share of the rows, and exchanges its model's parameters on the way. May
be killed at any moment.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Literal

import msgspec
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import learning_at_home as lah
from experiments.dashboard import Curve
from experiments.tasks import TASKS, Task
from learning_at_home.parent_watch import exit_when_stdin_closes
from learning_at_home.process_exit import end_quickly

EXPERTS, SHARED = "ffn0", "shared"
WAIT_S = 60.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a trainer is told, as JSON on its command line."""

    bootstrap: tuple[str, ...]
    project: str  # a TOML file
    coordinator: str | None = None  # the project's address there; the file is not read then
    run: str | None = None  # on the dashboard
    task: str = "digits"
    task_seed: int = 0
    seed: int = 0  # of this trainer's start and of the order of its rows
    rows: int = 10_000
    rows_per_step: int = 128
    every: int = 10
    background: bool = False
    learning_rate: float = 2e-3
    pace_s: float = 0.0
    evaluates_every: int = 0  # exchanges; 0: only at the start and at the end


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What it tells. `evaluated` has the test rows' loss and accuracy."""

    kind: Literal["progress", "evaluated", "finished"]
    rows: int
    loss: float | None = None
    accuracy: float | None = None
    shared: dict[str, float] | None = None


def main() -> int:
    """0 when all rows were trained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", help="JSON")
    settings = msgspec.json.decode(parser.parse_args().settings, type=Settings)
    end_quickly()
    exit_when_stdin_closes()
    torch.set_num_threads(1)
    train(settings)
    return 0


def train(settings: Settings) -> None:
    """Until this trainer's rows are used up."""
    task = TASKS[settings.task](settings.task_seed)
    torch.manual_seed(settings.seed)
    random = torch.Generator().manual_seed(settings.seed)
    project = Path(settings.project) if settings.coordinator is None else None
    with (
        lah.Swarm.connect(
            settings.coordinator, bootstrap=settings.bootstrap, project=project, run=settings.run
        ) as swarm,
        Curve(swarm.report) as curve,
    ):
        swarm.wait_until_alive(timeout_s=WAIT_S)
        model = task.build(lah.DMoE(swarm, layer=EXPERTS, k_best=4))
        shared = swarm.shared(SHARED, model, every=settings.every, background=settings.background)
        optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
        evaluate(model, task, 0)
        rows, steps = 0, 0
        while rows < settings.rows:
            started = time.monotonic()
            picks = torch.randint(len(task.train_rows), (settings.rows_per_step,), generator=random)
            loss = cross_entropy(model(task.train_rows[picks]), task.train_labels[picks])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            shared.step()
            rows, steps = rows + settings.rows_per_step, steps + 1
            curve(steps, loss=loss.item())
            time.sleep(max(0.0, settings.pace_s - (time.monotonic() - started)))
            if steps % settings.every == 0:
                say(Said(kind="progress", rows=rows, loss=loss.item()))
                if settings.evaluates_every and steps % (settings.every * settings.evaluates_every) == 0:
                    evaluate(model, task, rows)
        shared.sync()
        evaluate(model, task, rows)
        stats = shared.stats()
        counts = {
            name: getattr(stats, name) for name in ("rounds", "changes", "taken", "failures", "in_doubt", "fills")
        }
        say(Said(kind="finished", rows=rows, shared={**counts, "staleness": stats.staleness}))


def evaluate(model: nn.Module, task: Task, rows: int) -> None:
    """Say how the model does on the test rows; no expert learns by it."""
    with torch.no_grad():
        scores = model(task.test_rows)
        right = (scores.argmax(dim=1) == task.test_labels).float().mean()
        loss = cross_entropy(scores, task.test_labels)
    say(Said(kind="evaluated", rows=rows, loss=loss.item(), accuracy=right.item()))


def say(what: Said) -> None:
    """One line."""
    print(json.dumps(msgspec.to_builtins(what)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
