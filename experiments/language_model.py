"""A small language model whose feed-forward layers are mixtures over a real swarm, beside dense ones.

`python -m experiments.language_model --help`. A causal transformer learns the bytes of the standard library's sources,
or of WikiText from a folder (`--text`): with DMoE layers on node processes, and with dense layers of as much compute
per byte or of as many parameters. Each with every `--in-flight`: as many asynchronous trainers share the local
parameters. `--churn 0.3` trains the mixture once more while 30 % of the nodes are killed per minute and others join.
All get the same batches. Prints a table and a sample of text; long sets of runs can be made in pieces: `--add`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import torch

from benchmarks.machine import machine
from experiments.band_plot import band_plot
from experiments.dashboard import Dashboard, add_flag
from experiments.language_training import DMOE, MODELS, Point, Run, Settings, text_of, train

NUMBERS = {
    "layers": "of the transformer",
    "width": "features",
    "heads": "of the attention",
    "context": "bytes",
    "sequences": "per batch",
    "k_best": "experts per byte and layer",
    "batches": "of each training",
    "every": "batches between two measurements",
    "warmup": "batches",
    "nodes": "processes of the swarm",
    "sample_bytes": "to write at the end",
}


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every training came to its end."""
    options = parser().parse_args(argv)
    torch.set_num_threads(1)
    settings, text = settings_of(options), text_of(options.text)
    print(f"{len(text.train):,} bytes to learn from, {settings.batches} batches of {bytes_of_batch(settings):,}")
    started = time.monotonic()
    runs = read_runs(options.add)
    with Dashboard(options.dashboard) as dashboard:
        for model, in_flight, killed, seed in plan(options):
            run = train(model, settings, text, dashboard, in_flight=in_flight, killed_per_minute=killed, seed=seed)
            runs.append(run)
            print(line(run), flush=True)
            write(options, settings, runs, time.monotonic() - started)  # also what there is when it is interrupted
    if runs:
        print(table(runs))
        print(f"{runs[-1].name} writes:\n{runs[-1].text}")
        write(options, settings, runs, time.monotonic() - started)
    return 0


def plan(options: argparse.Namespace) -> Iterable[tuple[str, int, float, int]]:
    """Model, batches in flight, share killed per minute, seed: of every training."""
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for in_flight in options.in_flight:
            for model in options.models:
                yield model, in_flight, 0.0, seed
            if options.churn > 0:
                yield DMOE, in_flight, options.churn, seed


def settings_of(options: argparse.Namespace) -> Settings:
    names = set(Settings.__struct_fields__) & set(vars(options))
    return Settings(**{name: getattr(options, name) for name in names - {"grid"}}, grid=tuple(options.grid))


def bytes_of_batch(settings: Settings) -> int:
    return settings.sequences * settings.context


def read_runs(files: Iterable[Path]) -> list[Run]:
    """Of earlier calls. The files must be of the same settings: nothing checks that."""

    class Document(msgspec.Struct):
        runs: list[Run]

    return [run for file in files for run in msgspec.json.decode(file.read_bytes(), type=Document).runs]


def line(run: Run) -> str:
    last, lost = run.points[-1], run.lost
    text = (
        f"{run.name}, seed {run.seed}: {last.bits:.3f} bits per unseen byte after {last.batches} batches, "
        f"{last.seconds:.0f} s; staleness {run.staleness:.1f}"
    )
    if run.model == DMOE:
        text += f"; {lost.failed_calls:,} of {lost.calls:,} calls failed, {lost.failed_batches} batches"
    if lost.kills:
        text += (
            f"; {lost.kills} nodes killed, {lost.joined} joined; {lost.updates_lost:,} of "
            f"{lost.updates:,} updates lost with them; {lost.zero_gradient_rows:,} rows without gradient, "
            f"{lost.lost_contributions:,} contributions lost"
        )
    return text


def table(runs: Sequence[Run]) -> str:
    """Means over the seeds, with the least and the most."""
    lines = [f"{'model':<44} {'weights':>10} {'of which local':>14}  {'bits per unseen byte':<24} seconds"]
    for name, some in by_name(runs).items():
        bits, seconds = [run.points[-1].bits for run in some], [run.points[-1].seconds for run in some]
        local = some[0].local_parameters
        lines.append(
            f"{name:<44} {local + some[0].expert_parameters:>10,} {local:>14,}  "
            f"{statistics.mean(bits):.3f} ({min(bits):.3f} to {max(bits):.3f})   {statistics.mean(seconds):.0f}"
        )
    return "\n".join(lines)


def by_name(runs: Iterable[Run]) -> dict[str, list[Run]]:
    named: dict[str, list[Run]] = {}
    for run in runs:
        named.setdefault(run.name, []).append(run)
    return named


def write(options: argparse.Namespace, settings: Settings, runs: Sequence[Run], seconds: float) -> None:
    """The files that were asked for."""
    if options.json is not None:
        document = {
            "experiment": "language_model",
            "machine": machine(),
            "seconds": round(seconds, 1),
            "settings": msgspec.to_builtins(settings),
            "runs": msgspec.to_builtins(runs),
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    if options.plot is not None:
        write_plots(options.plot, settings, runs)


def write_plots(path: Path, settings: Settings, runs: Sequence[Run]) -> None:
    """`loss.svg` becomes loss-bytes.svg and loss-seconds.svg.

    Of several seeds' runs the seconds are the means at each measurement.
    """
    learned = {name: [run.points for run in some] for name, some in by_name(runs).items()}

    def series(x_of: Callable[[Sequence[Point]], float]) -> dict[str, list[list[tuple[float, float]]]]:
        drawn = {}
        for name, some in learned.items():
            places = [x_of(at_once) for at_once in zip(*some, strict=False)]
            drawn[name] = [[(x, point.bits) for x, point in zip(places, run, strict=False)] for run in some]
        return drawn

    per_batch = bytes_of_batch(settings)
    for label, x_of in (
        ("bytes", lambda points: float(points[0].batches * per_batch)),
        ("seconds", lambda points: statistics.mean(point.seconds for point in points)),
    ):
        picture = band_plot("A language model over the swarm", f"{label} of training", "bits per byte", series(x_of))
        path.with_name(f"{path.stem}-{label}{path.suffix}").write_text(picture, "utf-8")


def parser() -> argparse.ArgumentParser:
    """Small by default: some minutes."""
    default = Settings()
    flags = argparse.ArgumentParser(prog="experiments.language_model", description=__doc__)
    flags.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS), help="to train (all)")
    flags.add_argument("--in-flight", type=int, nargs="+", default=[1], help="asynchronous trainers; theirs: 32 (1)")
    flags.add_argument("--churn", type=float, default=0.0, help="also with this share of nodes killed per minute (0)")
    flags.add_argument("--seeds", type=int, default=1)
    flags.add_argument("--first-seed", type=int, default=0)
    flags.add_argument("--text", type=Path, help="a folder with wiki.train.tokens and wiki.valid.tokens")
    for name, meaning in NUMBERS.items():
        value = getattr(default, name)
        flag = f"--{name.replace('_', '-')}"
        flags.add_argument(flag, type=int, default=value, help=f"{meaning} ({value})")
    flags.add_argument("--grid", type=int, nargs="+", default=list(default.grid), help="of each layer's experts (4 4)")
    flags.add_argument("--architecture", choices=("mlp", "ffn"), default=default.architecture, help="of experts")
    flags.add_argument("--learning-rate", type=float, default=default.learning_rate)
    flags.add_argument("--expert-learning-rate", type=float, default=default.expert_learning_rate)
    flags.add_argument("--deadline-s", type=float, default=default.deadline_s, help="of a call")
    flags.add_argument("--grace-s", type=float, default=default.grace_s, help="for late answers")
    flags.add_argument("--in-process", action="store_true", help="nodes as threads of this process: sooner ready")
    flags.add_argument("--add", type=Path, nargs="*", default=[], help="JSON files of earlier runs, to draw with these")
    add_flag(flags)
    flags.add_argument("--json", type=Path)
    flags.add_argument("--plot", type=Path, help="an SVG's name; -bytes and -seconds are added to it")
    return flags


if __name__ == "__main__":
    sys.exit(main())
