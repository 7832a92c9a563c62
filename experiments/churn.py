"""Does training survive nodes that are killed? `python -m experiments.churn [--seeds 3 --json FILE --plot FILE]`

The demo's digits on real node processes, once calm and once while 30 % of them are killed (SIGKILL) per minute and
others join, for every seed: the same rows, the same initial weights, the same pace. Prints a table of final accuracy
and of what was lost. Seconds are real; the pace gives the killed share its meaning.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import learning_at_home as lah
from benchmarks.machine import machine
from experiments.band_plot import band_plot
from experiments.churning_nodes import ChurningNodes, Kill
from experiments.dashboard import Curve, Dashboard, add_flag
from learning_at_home.demo.digits import DigitsTask, make_digits_task
from learning_at_home.demo.recipe import LAYERS, Recipe, learning_rate_factor, project_record
from learning_at_home.demo.trainer import accuracy_on_test, build_model
from learning_at_home.errors import LearningAtHomeError
from node_agent.testing import LocalSwarm

WAIT_S = 60.0
TITLE = "Digits under churn"


@dataclass(frozen=True, slots=True)
class Run:
    """One training to its end."""

    seed: int
    killed_per_minute: float
    accuracy: float  # on the test rows, at the end, with the experts that serve then
    points: list[tuple[float, float]]  # steps, accuracy
    seconds: float
    kills: list[Kill]
    updates_lost: int  # that experts had made whose hosts were killed
    updates: int  # that answers told of; a lost answer's is not among them
    calls: int
    failures: int
    zero_gradient_rows: int
    lost_contributions: int  # of an expert to a row's gradient: failed backwards
    failed_steps: int  # no expert answered; nothing was updated


def train(
    task: DigitsTask, recipe: Recipe, options: argparse.Namespace, killed_per_minute: float, dashboard: Dashboard
) -> Run:
    """One run on node processes of its own."""
    torch.manual_seed(recipe.seed)
    record = msgspec.structs.replace(project_record(frozen_experts=False), title=TITLE)
    url = dashboard.serve(record)
    with (
        LocalSwarm(record, num_nodes=options.nodes, in_process=options.in_process, coordinator=url) as nodes,
        nodes.connect(f"{name_of(killed_per_minute)}, seed {recipe.seed}") as swarm,
        Curve(swarm.report) as curve,
    ):
        swarm.wait_until_alive(timeout_s=WAIT_S)
        backwards = count_backwards(swarm)
        model = build_model([lah.DMoE(swarm, layer, recipe.k_best) for layer in LAYERS])
        began = time.monotonic()
        with ChurningNodes(nodes, killed_per_minute, seed=recipe.seed) as churn:
            points, failed_steps = steps(model, task, recipe, options.pace_s, curve)
        stats = swarm.stats()
        return Run(
            seed=recipe.seed,
            killed_per_minute=killed_per_minute,
            accuracy=points[-1][1],
            points=points,
            seconds=time.monotonic() - began,
            kills=churn.kills,
            updates_lost=churn.updates_lost,
            updates=backwards[0],
            calls=stats.calls,
            failures=stats.failures,
            zero_gradient_rows=stats.zero_gradient_rows,
            lost_contributions=stats.lost_contributions,
            failed_steps=failed_steps,
        )


def steps(
    model: nn.Module, task: DigitsTask, recipe: Recipe, pace_s: float, curve: Curve
) -> tuple[list[tuple[float, float]], int]:
    """Train: accuracy by steps, and how many steps failed."""
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    random = torch.Generator().manual_seed(recipe.seed)
    points, failed = [], 0
    for step in range(recipe.steps):
        started = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * learning_rate_factor(step, 0.0, recipe)
        picks = torch.randint(len(task.train_rows), (recipe.rows_per_step,), generator=random)
        optimizer.zero_grad()
        try:
            scores = model(task.train_rows[picks])
            loss = cross_entropy(scores, task.train_labels[picks], label_smoothing=recipe.label_smoothing)
            loss.backward()
        except LearningAtHomeError as error:
            failed += 1
            print(f"step {step} failed: {error}", flush=True)
            continue
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        curve(step + 1, loss=loss.item())
        if (step + 1) % recipe.evaluate_every_steps == 0 or step + 1 == recipe.steps:
            points.append((float(step + 1), accuracy_on_test(model, task)))
            curve(step + 1, accuracy=points[-1][1])
        time.sleep(max(0.0, pace_s - (time.monotonic() - started)))
    return points, failed


def count_backwards(swarm: lah.Swarm) -> list[int]:
    """A cell that counts the updates that answers tell of, from now on."""
    counted, told = [0], swarm.calls.stats.told_updates

    def told_updates(forward: tuple[bytes, str, object], operation: str, updates: int, now: float) -> None:
        counted[0] += operation == "backward"
        told(forward, operation, updates, now)  # type: ignore[arg-type]

    swarm.calls.stats.told_updates = told_updates  # type: ignore[method-assign,assignment]
    return counted


def name_of(killed_per_minute: float) -> str:
    """Of a run, in the plot and on the dashboard."""
    return f"{killed_per_minute:.0%} killed/min" if killed_per_minute else "calm"


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """A line per run, then the means."""
    lines = [
        f"{'seed':>4} {'killed/min':>10} {'accuracy':>8} {'kills':>5} {'updates lost with hosts':>24}  failed calls"
    ]
    for run in runs:
        lost = f"{run['updates_lost']:,} of {run['updates']:,}"
        lines.append(
            f"{run['seed']:>4} {run['killed_per_minute']:>10.0%} {run['accuracy']:>8.4f} {len(run['kills']):>5} "
            f"{lost:>24}  {run['failures']:,} of {run['calls']:,}; {run['zero_gradient_rows']:,} rows without "
            f"gradient, {run['lost_contributions']:,} contributions lost, {run['failed_steps']} steps failed "
            f"({run['seconds']:.0f} s)"
        )
    for share in sorted({run["killed_per_minute"] for run in runs}):
        found = [run["accuracy"] for run in runs if run["killed_per_minute"] == share]
        mean = statistics.mean(found)
        lines.append(f"{share:.0%} killed per minute: accuracy {mean:.4f} ({min(found):.4f} to {max(found):.4f})")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every run came to its end."""
    options = _parser().parse_args(argv)
    torch.set_num_threads(1)
    task = make_digits_task(num_train_rows=options.train_rows, num_test_rows=options.test_rows)
    runs = [found for path in options.add for found in json.loads(path.read_text("utf-8"))["runs"]]
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    with Dashboard(options.dashboard) as dashboard:
        for seed, share in itertools.product(seeds, options.killed):
            recipe = Recipe(
                steps=options.steps, rows_per_step=options.rows, evaluate_every_steps=options.every, seed=seed
            )  # fmt: skip
            runs.append(asdict(train(task, recipe, options, share, dashboard)))
            print(f"seed {seed}, {share:.0%} killed per minute: accuracy {runs[-1]['accuracy']:.4f}", flush=True)
            write(options, runs)
    print(table(runs))
    return 0


def write(options: argparse.Namespace, runs: Sequence[Mapping[str, Any]]) -> None:
    """After every run: a long experiment may be cut short."""
    if options.json is not None:
        paths = ("json", "plot", "add")
        document = {
            "experiment": "churn",
            "machine": machine(),
            "options": {name: value for name, value in vars(options).items() if name not in paths},
            "runs": runs,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    if options.plot is not None:
        write_plot(options.plot, runs)


def write_plot(path: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """Accuracy by steps, calm and not."""
    series: dict[str, list[list[tuple[float, float]]]] = {}
    for run in runs:
        series.setdefault(name_of(run["killed_per_minute"]), []).append([(x, y) for x, y in run["points"]])
    title = f"Digits while nodes are killed ({len(runs) // max(1, len(series))} seeds)"
    path.write_text(band_plot(title, "steps", "accuracy on test rows", series), "utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.churn", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--killed",
        type=float,
        nargs="+",
        default=[0.0, 0.3],
        help="shares of nodes, per minute; a run each (0 0.3)",
    )
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--in-process", action="store_true", help="nodes as threads of this process: sooner ready")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pace-s", type=float, default=0.4, help="least seconds of a step (0.4)")
    parser.add_argument("--every", type=int, default=30, help="steps between two evaluations (30)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=256, help="per step (256)")
    parser.add_argument("--train-rows", type=int, default=30_000)
    parser.add_argument("--test-rows", type=int, default=1_250)
    parser.add_argument("--add", type=Path, nargs="*", default=[], help="earlier JSON files, for table and plot")
    add_flag(parser)
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--plot", type=Path, help="write a plot (SVG) to this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
