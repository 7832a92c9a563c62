"""How fast does a model train whose layers are far away? `python -m experiments.throughput_under_latency --json FILE`

Layers of a decentralized mixture of experts with many batches in flight, beside a chain of single experts (equal FLOPs
per row) that runs one batch at a time, and the chain with as many batches in flight. Real nodes, each behind a WAN line
with delay; a share of the DMoE's calls lost on the way. Then lines of 10 to 1,000 Mbit/s, with and without compression.
Only answered rows count. A delay is a call's: half of it each way. Source: figure 3 and the table of cloud regions of
Ryabinin & Gusev, 2020. Prints a table; `--plot FILE.svg` makes a picture per architecture and direction.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.command_line import ending_in_order, size
from benchmarks.distant_training import DistantTraining, Load, Model, Models, Throughput, Way
from benchmarks.machine import machine
from experiments.band_plot import band_plot
from experiments.dashboard import Curve, Dashboard, add_flag

REGIONS_MS = (92.49, 32.42)  # mean and deviation of a call between the paper's three cloud regions
MBIT = 1e6 / 8  # bytes
SEQUENCE_LENGTH = 16  # of the transformer's rows


@dataclass(frozen=True, slots=True)
class Point:
    """What is run, and how far away."""

    model: Model
    in_flight: int
    backward: bool
    way: Way
    compression: str = "none"

    @property
    def name(self) -> str:
        """Its line in a plot."""
        if self.model == "chain":
            return "chain, one batch" if self.in_flight == 1 else f"chain, {self.in_flight} in flight"
        return f"DMoE, {self.in_flight} in flight" + (f", {self.way.lost:.0%} lost" if self.way.lost else "")

    @property
    def run_name(self) -> str:
        """On the dashboard."""
        speed = "" if math.isinf(self.way.bytes_per_s) else f", {self.way.bytes_per_s / MBIT:g} Mbit/s"
        compression = "" if self.compression == "none" else f", {self.compression}"
        direction = "" if self.backward else ", forward alone"
        return f"{self.name}, {self.way.delay_s * 1e3:.0f} ms{speed}{compression}{direction}"


@dataclass(frozen=True, slots=True)
class Run:
    """A point that was measured."""

    architecture: str
    point: Point
    found: Throughput

    def to_json(self) -> dict[str, object]:
        way = asdict(self.point.way)
        way["bytes_per_s"] = None if math.isinf(self.point.way.bytes_per_s) else self.point.way.bytes_per_s
        fields = {"name": self.point.name, **asdict(self.point), "way": way}
        return {"architecture": self.architecture, **fields, **asdict(self.found)}


def points(options: argparse.Namespace) -> Iterator[Point]:
    """All of one architecture."""
    models: list[tuple[Model, int, float]] = [("dmoe", options.in_flight, lost) for lost in options.lost]
    models += [("chain", 1, 0.0), ("chain", options.in_flight, 0.0)]
    ways = [(delay_ms, 0.0) for delay_ms in options.delays_ms] + ([REGIONS_MS] if options.regions else [])
    directions = {"both": (False, True), "forward": (False,), "backward": (True,)}[options.direction]
    for backward in directions:
        for delay_ms, jitter_ms in ways:
            for model, in_flight, lost in models:
                way = Way(delay_s=delay_ms / 1e3, jitter_s=jitter_ms / 1e3, lost=lost, seed=options.seed)
                yield Point(model, in_flight, backward, way)
    for mbit in options.mbit:
        for compression in options.compression:
            way = Way(delay_s=options.mbit_delay_ms / 1e3, bytes_per_s=mbit * MBIT, seed=options.seed)
            yield Point("dmoe", options.in_flight, True, way, compression)


def measure(training: DistantTraining, point: Point, options: argparse.Namespace) -> Throughput:
    """One point."""
    alone = point.in_flight == 1
    load = Load(
        model=point.model,
        backward=point.backward,
        rows=options.rows,
        in_flight=point.in_flight,
        compression=point.compression,
        warm_batches=point.in_flight,
        batches=options.chain_batches if alone else options.waves * point.in_flight,
    )
    training.swarm.run = point.run_name
    with Curve(training.swarm.report) as curve:
        return training.throughput(load, point.way, curve)


def line(run: Run) -> str:
    """One of the table."""
    way, found = run.point.way, run.found
    speed = "" if math.isinf(way.bytes_per_s) else f"  {way.bytes_per_s / MBIT:,.0f} Mbit/s, {run.point.compression}"
    lost = f"  {found.lost_requests + found.lost_replies:,} of {found.calls:,} calls lost" if way.lost else ""
    failed = f"  {found.failed_batches} of {found.batches} batches FAILED" if found.failed_batches else ""
    return (
        f"{run.architecture:<12} {'forward, backward' if run.point.backward else 'forward':<18} "
        f"{way.delay_s * 1e3:>5.0f} ms {'± ' + format(way.jitter_s * 1e3, '.0f') if way.jitter_s else '':<5} "
        f"{run.point.name:<28} {found.rows_per_s:>9,.0f} rows/s{speed}{lost}{failed}"
    )


def write_plots(path: Path, runs: Sequence[Run]) -> list[Path]:
    """`speed.svg` becomes speed-ffn-forward.svg and so on: rows per second against delay."""
    written = []
    for architecture in dict.fromkeys(run.architecture for run in runs):
        for backward in (False, True):
            series: dict[str, list[list[tuple[float, float]]]] = {}
            for run in runs:
                way = run.point.way
                whole = run.architecture == architecture and run.point.backward == backward and not way.jitter_s
                if whole and math.isinf(way.bytes_per_s):
                    series.setdefault(run.point.name, [[]])[0].append((way.delay_s * 1e3, run.found.rows_per_s))
            if not series:
                continue
            direction = "forward and backward" if backward else "forward alone"
            picture = band_plot(
                f"{architecture}, {direction}", "delay of a call, ms", "answered rows per second", series
            )
            short = "backward" if backward else "forward"
            written.append(path.with_name(f"{path.stem}-{architecture}-{short}{path.suffix}"))
            written[-1].write_text(picture, "utf-8")
    return written


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    options = parser().parse_args(argv)
    runs: list[Run] = []
    with ending_in_order(), Dashboard(options.dashboard) as dashboard:
        for architecture in options.architectures:
            models = Models(
                architecture=architecture,
                hidden_size=options.hidden_size,
                sequence_length=SEQUENCE_LENGTH if architecture == "transformer" else None,
                num_layers=options.layers,
                grid=tuple(options.grid),
                k_best=options.k_best,
                num_nodes=options.nodes,
                grace_s=options.grace_s,
                deadline_s=options.deadline_s,
            )
            with DistantTraining(models, options.seed, dashboard.serve(models.project())) as training:
                for point in points(options):
                    runs.append(Run(architecture, point, measure(training, point, options)))
                    print(line(runs[-1]), flush=True)
    if options.json is not None:
        document = {
            "experiment": "throughput_under_latency",
            "machine": machine(),
            "options": {**vars(options), "json": None, "plot": None},
            "runs": [run.to_json() for run in runs],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    if options.plot is not None:
        write_plots(options.plot, runs)
    return 0


def parser() -> argparse.ArgumentParser:
    """Small by default: some minutes."""
    flags = argparse.ArgumentParser(prog="python -m experiments.throughput_under_latency", description=__doc__)
    flags.add_argument("--architectures", nargs="+", default=["ffn"], help="ffn, mlp, transformer (ffn)")
    flags.add_argument("--hidden-size", type=size, default=64, help="of the DMoE's experts (64)")
    flags.add_argument("--layers", type=size, default=4, help="one after another (4)")
    flags.add_argument("--grid", type=size, nargs="+", default=[4, 4], help="of each layer (4 4)")
    flags.add_argument("--k-best", type=size, default=4, help="a square: 1, 4 ... (4)")
    flags.add_argument("--rows", type=size, default=64, help="of a batch (64)")
    flags.add_argument("--in-flight", type=size, default=32, help="batches (32)")
    flags.add_argument(
        "--waves", type=size, default=2, help="that are counted, of as many batches as are in flight (2)"
    )
    flags.add_argument("--chain-batches", type=size, default=3, help="that are counted of the one at a time (3)")
    flags.add_argument("--nodes", type=size, default=4, help="of one thread each (4)")
    flags.add_argument("--direction", choices=("both", "forward", "backward"), default="both")
    flags.add_argument("--delays-ms", type=float, nargs="*", default=[0, 50, 100, 150, 200], help="of a call")
    flags.add_argument(
        "--regions", action=argparse.BooleanOptionalAction, default=True, help="also 92.49 ± 32.42 ms, as the paper's"
    )
    flags.add_argument("--lost", type=float, nargs="+", default=[0.0, 0.1], help="shares of calls (0 0.1)")
    flags.add_argument("--grace-s", type=float, default=0.25, help="of the layers (0.25)")
    flags.add_argument("--deadline-s", type=float, default=10.0, help="of the calls (10)")
    flags.add_argument("--mbit", type=float, nargs="*", default=[10, 100, 1000], help="per second, each node's line")
    flags.add_argument("--mbit-delay-ms", type=float, default=50.0, help="of a call over these lines (50)")
    flags.add_argument("--compression", nargs="+", default=["none", "int8"], help="over these lines (none int8)")
    flags.add_argument("--seed", type=int, default=0)
    add_flag(flags)
    flags.add_argument("--json", type=Path)
    flags.add_argument("--plot", type=Path, help="an SVG's name; architecture and direction are added to it")
    return flags


if __name__ == "__main__":
    sys.exit(main())
