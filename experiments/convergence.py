"""Do delays and failures keep a mixture from learning? `python -m experiments.convergence [--json FILE --plot FILE]`

The convergence experiment of Ryabinin & Gusev (2020): a dense model and mixtures of 64 and 256 experts, trained by 16
and 64 asynchronous trainers, behind delays of 100 and 1000 ms, with no and with 10 % failed calls, for several seeds.
By two protocols: see experiments/virtual_training.py. The demo's digits, or MNIST from a folder (`--mnist FOLDER`).
On a virtual clock: gate, layer and node runtime are the real ones, delays cost nothing. `--real` has real node
processes and real seconds instead (experiments/real_training.py).
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks.machine import machine
from experiments.asynchronous_trainers import Rows
from experiments.band_plot import band_plot
from experiments.dashboard import Dashboard, add_flag, virtual_project
from experiments.mnist import load_mnist
from experiments.virtual_training import Condition, Run, Sizes, run

MS = 1e-3
PROJECT = virtual_project("convergence", "Convergence with delays and failures")


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every run came to its end."""
    options = parser().parse_args(argv)
    torch.set_num_threads(1)
    began = time.monotonic()
    rows, sizes = load_rows(options), sizes_of(options)
    runs = [found for path in options.add for found in json.loads(path.read_text("utf-8"))["runs"]]
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    with Dashboard(options.dashboard) as dashboard:
        for condition, seed in itertools.product(conditions(options), seeds):
            if options.real:
                from experiments.real_training import run_for_real  # here: a virtual run needs no nodes of its own

                found = run_for_real(condition, sizes, rows, seed, dashboard, in_process=options.in_process)
            else:
                with dashboard.curve(PROJECT, f"{condition.name}, seed {seed}") as curve:
                    found = run(condition, sizes, rows, seed, curve)
            runs.append(msgspec.to_builtins(found))
            print(line(found), flush=True)
            write(options, runs, time.monotonic() - began)
    print(table(runs))
    return 0


def conditions(options: argparse.Namespace) -> list[Condition]:
    """All combinations that are asked for and mean something."""
    found = []
    for protocol, trainers, delay_ms, share, experts in itertools.product(
        options.protocols, options.trainers, options.delays_ms, options.failed, options.experts
    ):
        if protocol == "paper" and not experts and share:
            continue  # a dense model on its trainer has no calls that could fail
        found.append(
            Condition(experts=experts, trainers=trainers, delay_s=delay_ms * MS, failed_share=share, protocol=protocol)
        )
    return found


def load_rows(options: argparse.Namespace) -> Rows:
    """The task. Raises ConfigError when the folder is not MNIST's."""
    if options.mnist is not None:
        return load_mnist(options.mnist)
    from learning_at_home.demo.digits import make_digits_task  # here: needs scikit-learn

    made = make_digits_task(0, options.train_rows, options.test_rows)
    return Rows(made.train_rows, made.train_labels, made.test_rows, made.test_labels)


def sizes_of(options: argparse.Namespace) -> Sizes:
    return Sizes(
        hidden_size=options.hidden_size,
        layers=options.layers,
        k_best=options.k_best,
        batches=options.batches,
        rows_per_batch=options.rows,
        evaluate_every=options.every,
        learning_rate=options.learning_rate,
        expert_rate=options.expert_rate or options.learning_rate,
        optimizer=options.optimizer,
        nodes=options.nodes,
    )


def line(found: Run) -> str:
    """One run."""
    condition = found.condition
    return (
        f"{condition.name}, seed {found.seed}: accuracy {found.accuracy:.4f}, loss {found.loss:.3f}; "
        f"{found.failures:,} of {found.calls:,} calls failed, {found.lost_batches} batches lost "
        f"({found.virtual_s:.0f} s virtual, {found.seconds:.0f} s)"
    )


def name_of(condition: Mapping[str, Any]) -> tuple[str, str]:
    """The picture to which a condition belongs, and its series there."""
    found = Condition(**condition)
    return f"{found.protocol}: {found.setting}", f"{found.model}{found.failing}"


def by_condition(runs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[Mapping[str, Any]]]]:
    """The runs by picture and series."""
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for one in runs:
        picture, series = name_of(one["condition"])
        found.setdefault(picture, {}).setdefault(series, []).append(one)
    return found


def table(runs: Iterable[Mapping[str, Any]]) -> str:
    """A row per condition, as Markdown: means over the seeds, least to most in parentheses."""
    lines = [
        "| protocol, trainers, delay | model | accuracy at the end | loss | staleness | calls failed | batches lost |",
        "|---|---|---|---|---|---|---|",
    ]
    for setting, series in by_condition(runs).items():
        for name, group in series.items():
            calls, failures = (sum(one[what] for one in group) for what in ("calls", "failures"))
            staleness = _mean_staleness(group, "staleness")
            experts = _mean_staleness(group, "expert_staleness")
            old = f"{staleness:.1f}" + (f", of experts {experts:.1f}" if experts is not None else "")
            failed = f"{failures / calls:.1%}" if calls else "-"
            lost = statistics.mean(one["lost_batches"] for one in group)
            accuracy, loss = _band(group, "accuracy"), _band(group, "loss")
            lines.append(f"| {setting} | {name} | {accuracy} | {loss} | {old} | {failed} | {lost:.0f} |")
    return "\n".join(lines)


def _band(group: Sequence[Mapping[str, Any]], what: str) -> str:
    values = [one[what] for one in group]
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _mean_staleness(group: Sequence[Mapping[str, Any]], what: str) -> float | None:
    counts = [(int(old), count) for one in group for old, count in one[what].items()]
    total = sum(count for _, count in counts)
    return sum(old * count for old, count in counts) / total if total else None


def write(options: argparse.Namespace, runs: Sequence[Mapping[str, Any]], seconds: float) -> None:
    """All that is known so far, after every run: a long experiment may be cut short."""
    if options.json is not None:
        paths = ("json", "plot", "add", "mnist")
        document = {
            "experiment": "convergence",
            "machine": machine(),
            "seconds": round(seconds, 1),
            "options": {name: value for name, value in vars(options).items() if name not in paths},
            "task": "mnist" if options.mnist else "digits",
            "runs": runs,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    if options.plot is not None:
        write_plots(options.plot, runs)


def write_plots(path: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """`loss.svg` becomes loss-alike-16-100.svg and so on, one per protocol, trainers and delay."""
    for title, series in by_condition(runs).items():
        lines = {
            name: [[(batches, accuracy) for batches, _, accuracy in one["points"]] for one in group]
            for name, group in series.items()
        }
        condition = next(iter(series.values()))[0]["condition"]
        parts = condition["protocol"], condition["trainers"], f"{condition['delay_s'] / MS:g}"
        name = f"{path.stem}-{'-'.join(map(str, parts))}{path.suffix}"
        path.with_name(name).write_text(band_plot(title, "batches", "accuracy on test rows", lines), "utf-8")


def parser() -> argparse.ArgumentParser:
    """Small by default: a quarter of an hour of one core.

    The sizes of the paper's notebooks: `--mnist FOLDER --hidden-size 512 --layers 4 --rows 4 --batches 20480`.
    """
    flags = argparse.ArgumentParser(prog="python -m experiments.convergence", description=__doc__.splitlines()[0])
    flags.add_argument("--experts", type=int, nargs="+", default=[0, 64, 256], help="per layer; 0: dense (0 64 256)")
    flags.add_argument("--trainers", type=int, nargs="+", default=[16, 64])
    flags.add_argument("--delays-ms", type=float, nargs="+", default=[100.0, 1000.0], help="means (100 1000)")
    flags.add_argument("--failed", type=float, nargs="+", default=[0.0, 0.1], help="shares of calls (0 0.1)")
    flags.add_argument("--protocols", nargs="+", choices=("alike", "paper"), default=["alike", "paper"])
    flags.add_argument("--seeds", type=int, default=3)
    flags.add_argument("--first-seed", type=int, default=0)
    flags.add_argument("--batches", type=int, default=300, help="of all trainers together (300)")
    flags.add_argument("--rows", type=int, default=8, help="per batch (8)")
    flags.add_argument("--every", type=int, default=50, help="batches between two evaluations (50)")
    flags.add_argument("--hidden-size", type=int, default=64)
    flags.add_argument("--layers", type=int, default=1)
    flags.add_argument("--k-best", type=int, default=4)
    flags.add_argument("--learning-rate", type=float, default=3e-4, help="of the trainers' own parameters (0.0003)")
    flags.add_argument("--expert-rate", type=float, help="of the experts (the same)")
    flags.add_argument("--optimizer", choices=("adam", "sgd"), default="adam", help="of what is on nodes (adam)")
    flags.add_argument("--nodes", type=int, default=4)
    flags.add_argument("--real", action="store_true", help="real node processes, in real seconds")
    flags.add_argument("--in-process", action="store_true", help="with --real: nodes as threads of this process")
    flags.add_argument("--mnist", type=Path, help="a folder with MNIST's files, instead of the digits")
    flags.add_argument("--train-rows", type=int, default=30_000, help="of the digits")
    flags.add_argument("--test-rows", type=int, default=1_250, help="of the digits")
    flags.add_argument("--add", type=Path, nargs="*", default=[], help="earlier JSON files, for tables and plots")
    add_flag(flags)
    flags.add_argument("--json", type=Path, help="write everything to this file")
    flags.add_argument("--plot", type=Path, help="write plots (SVG) beside this file")
    return flags


if __name__ == "__main__":
    sys.exit(main())
