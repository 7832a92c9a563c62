"""What asynchrony costs: staleness of updates against loss. `python -m experiments.asynchrony [--json FILE]`

The demo's digits and one layer of experts, trained by 1, 4, 16 and 64 asynchronous trainers at several learning rates,
each for the same rows, on a virtual clock (experiments/virtual_training.py). Prints, per number of trainers, how old
updates were (in updates), and the loss at each rate beside that of one trainer at its best rate.
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
from experiments.band_plot import band_plot
from experiments.convergence import MS, load_rows
from experiments.dashboard import Dashboard, add_flag, virtual_project
from experiments.virtual_training import Condition, Sizes, run

HARMLESS = 1.1  # times the mean loss of the fewest trainers at the same rate: about the spread of seeds
HISTOGRAM_BARS = 8
PROJECT = virtual_project("asynchrony", "What asynchrony costs")
LOSS_SHOWN = 3.0  # in the plot at most; what diverges is far above, and chance at 2.3


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every run came to its end."""
    options = parser().parse_args(argv)
    torch.set_num_threads(1)
    began = time.monotonic()
    rows = load_rows(options)
    runs = [found for path in options.add for found in json.loads(path.read_text("utf-8"))["runs"]]
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    with Dashboard(options.dashboard) as dashboard:
        for trainers, rate, seed in itertools.product(options.trainers, options.rates, seeds):
            name = f"{trainers} trainers, rate {rate:g}, seed {seed}"
            with dashboard.curve(PROJECT, name) as curve:
                found = run(*setting(options, trainers, rate), rows, seed, curve)
            runs.append({"rate": rate, **msgspec.to_builtins(found)})
            print(
                f"{name}: loss {found.loss:.3f}, accuracy {found.accuracy:.3f} ({found.seconds:.0f} s)",
                flush=True,
            )
            write(options, runs, time.monotonic() - began)
    print(table(runs))
    return 0


def setting(options: argparse.Namespace, trainers: int, rate: float) -> tuple[Condition, Sizes]:
    """Of a run."""
    sizes = Sizes(
        layers=options.layers,
        batches=options.batches,
        rows_per_batch=options.rows,
        evaluate_every=options.every,
        learning_rate=rate,
        expert_rate=rate,
    )
    return Condition(experts=options.experts, trainers=trainers, delay_s=options.delay_ms * MS, failed_share=0.0), sizes


def mean_losses(runs: Iterable[Mapping[str, Any]]) -> dict[int, dict[float, list[float]]]:
    """By trainers and rate, the final loss of each seed; one that diverged counts as infinite."""
    found: dict[int, dict[float, list[float]]] = {}
    for one in runs:
        loss = one["loss"] if one["loss"] is not None else float("inf")
        found.setdefault(one["condition"]["trainers"], {}).setdefault(one["rate"], []).append(loss)
    return found


def harmless_rates(losses: Mapping[int, Mapping[float, Sequence[float]]]) -> dict[int, list[float]]:
    """By trainers, the rates whose mean loss is within HARMLESS of that of the fewest trainers at the same rate."""
    fewest = {rate: statistics.mean(values) for rate, values in losses[min(losses)].items()}
    return {
        trainers: [
            rate
            for rate, values in by_rate.items()
            if rate in fewest and statistics.mean(values) <= HARMLESS * fewest[rate]
        ]
        for trainers, by_rate in losses.items()
    }


def histogram(counts: Mapping[Any, int]) -> list[tuple[int, int, float]]:
    """[from, to] in updates and the share of all between them, in bars that are twice as wide each."""
    total = sum(counts.values())
    bars = []
    for bar in range(HISTOGRAM_BARS):
        low, high = (0, 0) if bar == 0 else (2 ** (bar - 1), 2**bar - 1)
        share = sum(count for old, count in counts.items() if low <= int(old) <= high) / max(1, total)
        bars.append((low, high, share))
    return bars


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Two tables, as Markdown: how old updates were, and the loss by trainers and rate."""
    losses = mean_losses(runs)
    rates = sorted({one["rate"] for one in runs})
    names = [f"{low}" if low == high else f"{low} to {high}" for low, high, _ in histogram({})]
    lines = ["| trainers | updates of | " + " | ".join(names) + " | mean |", "|---" * (3 + len(names)) + "|"]
    for trainers in sorted(losses):
        for whose, what in (("their own parameters", "staleness"), ("experts", "expert_staleness")):
            counts: dict[int, int] = {}
            for one in runs:
                if one["condition"]["trainers"] == trainers:
                    for old, count in one[what].items():
                        counts[int(old)] = counts.get(int(old), 0) + count
            mean = sum(old * count for old, count in counts.items()) / max(1, sum(counts.values()))
            shares = " | ".join(f"{share:.0%}" for _, _, share in histogram(counts))
            lines.append(f"| {trainers} | {whose} | {shares} | {mean:.1f} |")
    lines += ["", "| trainers | " + " | ".join(f"rate {rate:g}" for rate in rates) + " | harmless |"]
    lines.append("|---" * (2 + len(rates)) + "|")
    harmless = harmless_rates(losses)
    for trainers in sorted(losses):
        cells = [_cell(losses[trainers].get(rate, ())) for rate in rates]
        good = ", ".join(f"{rate:g}" for rate in harmless[trainers]) or "none"
        lines.append(f"| {trainers} | {' | '.join(cells)} | {good} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else "-"


def write(options: argparse.Namespace, runs: Sequence[Mapping[str, Any]], seconds: float) -> None:
    """After every run: a long experiment may be cut short."""
    if options.json is not None:
        document = {
            "experiment": "asynchrony",
            "machine": machine(),
            "seconds": round(seconds, 1),
            "options": {
                name: value for name, value in vars(options).items() if name not in ("json", "plot", "add", "mnist")
            },
            "runs": runs,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    if options.plot is not None:
        options.plot.write_text(picture(runs), "utf-8")


def picture(runs: Iterable[Mapping[str, Any]]) -> str:
    """Loss at the end by learning rate, a line per number of trainers."""
    by_seed: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for one in runs:
        trainers = one["condition"]["trainers"]
        name = f"{trainers} trainer{'s' if trainers > 1 else ''}"
        by_seed.setdefault(name, {}).setdefault(one["seed"], []).append((one["rate"], shown_loss(one["loss"])))
    series = {name: list(of_seeds.values()) for name, of_seeds in by_seed.items()}
    return band_plot(
        "Asynchronous trainers",
        "learning rate",
        f"loss on test rows at the end ({LOSS_SHOWN:g} or more: {LOSS_SHOWN:g})",
        series,
        log_x=True,
    )


def shown_loss(loss: float | None) -> float:
    """What the plot has room for; also of one that is NaN."""
    return loss if loss is not None and loss < LOSS_SHOWN else LOSS_SHOWN


def parser() -> argparse.ArgumentParser:
    """Small by default."""
    flags = argparse.ArgumentParser(prog="python -m experiments.asynchrony", description=__doc__.splitlines()[0])
    flags.add_argument("--trainers", type=int, nargs="+", default=[1, 4, 16, 64])
    flags.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3, 3e-3], help="of Adam, all over")
    flags.add_argument("--experts", type=int, default=16, help="of the layer; 0: a dense block on a node (16)")
    flags.add_argument("--layers", type=int, default=1)
    flags.add_argument("--delay-ms", type=float, default=100.0, help="mean of a message and its answer (100)")
    flags.add_argument("--seeds", type=int, default=3)
    flags.add_argument("--first-seed", type=int, default=0)
    flags.add_argument("--batches", type=int, default=500, help="of all trainers together (500)")
    flags.add_argument("--rows", type=int, default=16, help="per batch (16)")
    flags.add_argument("--every", type=int, default=125, help="batches between two evaluations (125)")
    flags.add_argument("--mnist", type=Path, help="a folder with MNIST's files, instead of the digits")
    flags.add_argument("--train-rows", type=int, default=30_000, help="of the digits")
    flags.add_argument("--test-rows", type=int, default=1_250, help="of the digits")
    flags.add_argument("--add", type=Path, nargs="*", default=[], help="earlier JSON files, for tables and the plot")
    add_flag(flags)
    flags.add_argument("--json", type=Path, help="write everything to this file")
    flags.add_argument("--plot", type=Path, help="write a plot (SVG) to this file")
    return flags


if __name__ == "__main__":
    sys.exit(main())
