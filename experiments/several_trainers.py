"""Several trainers of one model: loss against rows and against seconds, and a trainer that is killed.

`python -m experiments.several_trainers --help`. Each run has nodes of its own, as processes, and trainers, as
processes; all start with different weights, and share them through the swarm. The first trainer measures the loss on
test rows as it goes. Each takes `--pace-s` per step at least, as on a machine of its own: where all share a few cores,
seconds mean nothing otherwise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.machine import machine
from benchmarks.plot import log_log_plot
from experiments.dashboard import Dashboard, add_flag
from experiments.tasks import HIDDEN_SIZE, TASKS
from experiments.trainer_group import Point, Run, TrainerGroup, kill_and_restart
from experiments.trainer_process import EXPERTS, SHARED, Settings
from learning_at_home.project import LayerSpec, OptimizerSpec, ProjectRecord
from node_agent.testing import LocalSwarm

CHUNK_NUMBERS = 8_192  # of these models' 18,000 to 40,000: more chunks than one, so that rounds may be torn
NUM_CHUNKS = 6
OUTER_RATE, OUTER_MOMENTUM = 0.7, 0.9  # DiLoCo's (Douillard et al. 2023)
AVERAGE_WITHIN_S = 10.0  # of those that are there, when a trainer is gone


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every run came to its end."""
    options = parser().parse_args(argv)
    started = time.monotonic()
    runs = []
    with Dashboard(options.dashboard) as dashboard:
        for seed, number in itertools.product(range(options.seeds), options.trainers):
            with nodes_of(options, number, dashboard) as nodes:
                runs.append(TrainerGroup(nodes, settings(options), number, seed).train())
            print(runs[-1].line(), flush=True)
        restarts = []
        if options.kill:
            with nodes_of(options, 1, dashboard) as nodes:
                restarts.append(kill_and_restart(nodes, settings(options)))
            print(restarts[-1].line())
    if options.json is not None:
        document = {
            "experiment": "several_trainers",
            "machine": machine(),
            "seconds": round(time.monotonic() - started, 1),
            "settings": {name: value for name, value in vars(options).items() if name not in ("json", "plot")},
            "runs": msgspec.to_builtins(runs),
            "restarts": msgspec.to_builtins(restarts),
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    if options.plot is not None and runs:
        write_plots(options.plot, runs, f"{options.task}, {options.outer}")
    return 0


def nodes_of(options: argparse.Namespace, num_trainers: int, dashboard: Dashboard) -> LocalSwarm:
    """For so many trainers."""
    record = project(options.outer, num_trainers)
    url = dashboard.serve(record)
    return LocalSwarm(record, options.nodes, in_process=options.in_process, coordinator=url)


def project(outer: str, num_trainers: int) -> ProjectRecord:
    """A layer of experts, and one of parameters that are shared: each change added, or averaged over the trainers."""
    optimizer = OptimizerSpec(name="sgd", learning_rate=1.0)
    if outer == "averaged":
        optimizer = OptimizerSpec(
            name="sgd",
            learning_rate=OUTER_RATE / num_trainers,
            momentum=OUTER_MOMENTUM,
            nesterov=True,
            update_rows=num_trainers,
            update_seconds=AVERAGE_WITHIN_S,
        )
    experts = LayerSpec(
        prefix=EXPERTS, grid=(4, 4), hidden_size=HIDDEN_SIZE, optimizer=OptimizerSpec(learning_rate=2e-3)
    )
    shared = LayerSpec(
        prefix=SHARED,
        grid=(NUM_CHUNKS,),
        architecture="parameters",
        hidden_size=CHUNK_NUMBERS,
        optimizer=optimizer,
    )
    return ProjectRecord(id="several-trainers", title="Several trainers", layers=(experts, shared)).check()


def settings(options: argparse.Namespace) -> Settings:
    """What all trainers are told alike."""
    return Settings(
        bootstrap=(),
        project="",
        task=options.task,
        rows=options.rows,
        rows_per_step=options.rows_per_step,
        every=options.every,
        background=options.background,
        pace_s=options.pace_s,
        evaluates_every=options.evaluates_every,
    )


def write_plots(path: Path, runs: Sequence[Run], title: str) -> None:
    """`loss.svg` becomes loss-rows.svg and loss-seconds.svg: of the first seed, without the untrained start."""

    def series(x_of: str) -> dict[str, list[tuple[float, float]]]:
        lines = {}
        for run in runs:
            if run.seed == 0:
                points: list[Point] = [point for point in run.points if point.rows > 0 and point.seconds > 0]
                name = f"{run.trainers} trainer{'s' if run.trainers > 1 else ''}"
                lines[name] = [(float(getattr(point, x_of)), point.loss) for point in points]
        return {name: line for name, line in lines.items() if line}

    for x_of, label in (("rows", "rows of all trainers"), ("seconds", "seconds")):
        picture = log_log_plot(f"Several trainers: {title}", label, "loss on test rows", series(x_of))
        path.with_name(f"{path.stem}-{x_of}{path.suffix}").write_text(picture, "utf-8")


def parser() -> argparse.ArgumentParser:
    """Small by default: some minutes."""
    flags = argparse.ArgumentParser(prog="experiments.several_trainers", description=__doc__)
    flags.add_argument("--trainers", type=int, nargs="*", default=[1, 2, 4], help="one run for each number (1 2 4)")
    flags.add_argument("--task", choices=sorted(TASKS), default="digits")
    flags.add_argument("--rows", type=int, default=60_000, help="of all trainers together (60,000)")
    flags.add_argument("--rows-per-step", type=int, default=128)
    flags.add_argument("--every", type=int, default=10, help="steps of a trainer between two exchanges (10)")
    flags.add_argument("--outer", choices=("added", "averaged"), default="added", help="what hosts do with changes")
    flags.add_argument("--background", action="store_true", help="exchange beside the training")
    flags.add_argument("--pace-s", type=float, default=0.15, help="least seconds of a trainer's step (0.15)")
    flags.add_argument("--evaluates-every", type=int, default=2, help="exchanges of the first trainer (2)")
    flags.add_argument("--nodes", type=int, default=2)
    flags.add_argument("--in-process", action="store_true", help="nodes as threads of this process: sooner ready")
    flags.add_argument("--seeds", type=int, default=1, help="runs of each number, with other starts and rows (1)")
    flags.add_argument(
        "--kill", action="store_true", help="also kill a lone trainer half-way (SIGKILL) and start it anew"
    )
    add_flag(flags)
    flags.add_argument("--json", type=Path)
    flags.add_argument("--plot", type=Path, help="an SVG's name; -rows and -seconds are added to it")
    return flags


if __name__ == "__main__":
    sys.exit(main())
