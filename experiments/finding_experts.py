"""How long it takes to find the 4 best experts among many nodes: by the DHT alone, cold and warm, and by the mirror.

`python -m experiments.finding_experts --help`. Our own nodes in a simulated network of 50 ms one way; times by the
DHT are virtual, of the network alone. By the mirror no network is asked: that time is real. Prints a table; 10,000
nodes take half an hour.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.machine import machine
from benchmarks.plot import log_log_plot
from experiments.dashboard import Dashboard, add_flag, virtual_project
from experiments.mirrored_choice import MirroredChoice, choose
from experiments.simulated_searches import Scene, Searches, simulate

# The paper's appendix, from memory: seconds to find the top 4 with so many nodes. Its network was another one.
THEIRS_S = {100: 0.317, 1_000: 0.528, 10_000: 0.764}
PROJECT = virtual_project("finding-experts", "Finding experts")
MAX_HOSTS = 4_096  # as many experts as the paper's largest layers have
KINDS = {
    "cold": "by a peer that has just joined",
    "other": "then, for other rows",
    "same": "then, for the same rows again",
}


@dataclass(frozen=True, slots=True)
class Size:
    """What was found for one number of nodes."""

    scene: Scene
    searches: Searches
    mirror: MirroredChoice

    def seconds(self, kind: str) -> float:
        return statistics.fmean(search.seconds for search in self.searches.of_kind(kind))

    def lines(self) -> list[str]:
        scene, found, mirror = self.scene, self.searches, self.mirror
        lines = [
            f"{scene.nodes:,} nodes, {found.held:,} of {scene.hosts:,} hosts announced, seed {scene.seed}"
            f" ({found.wall_seconds:.0f} s of real time)"
        ]
        for kind, meaning in KINDS.items():
            some = found.of_kind(kind)
            trips = [search.round_trips for search in some]
            lines.append(
                f"  DHT, {meaning:<31} {self.seconds(kind) * 1000:7.0f} ms  round trips: mean "
                f"{statistics.fmean(trips):.2f}, median {statistics.median(trips):.1f}, most {max(trips):.1f}; "
                f"{sum(search.right for search in some)} of {len(some)} right"
            )
        lines.append(
            f"  mirror {'':<31} {mirror.seconds * 1000:7.3f} ms  {mirror.changed_seconds * 1000:.2f} ms when somebody "
            f"came or went; {mirror.snapshot_seconds:.1f} s for the snapshot; {'right' if mirror.right else 'WRONG'}"
        )
        return [
            *lines,
            f"  joining took {statistics.fmean(found.join_seconds) * 1000:.0f} ms, all processors together "
            f"{found.processor_seconds * 1000:.0f} ms per search, which the times above leave out",
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every search was made, whatever was found."""
    options = parser().parse_args(argv)
    torch.set_num_threads(1)
    started = time.monotonic()
    sizes: list[Size] = []
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    with Dashboard(options.dashboard) as dashboard:
        for nodes, seed in itertools.product(options.nodes, seeds):
            scene = scene_of(options, nodes, seed)
            with dashboard.curve(PROJECT, f"{nodes:,} nodes, seed {seed}") as curve:
                searches = simulate(scene, curve)
            sizes.append(Size(scene, searches, choose(scene)))
            print("\n".join(sizes[-1].lines()), flush=True)
            write(options, sizes, time.monotonic() - started)  # also what there is when a long run is ended
    return 0


def scene_of(options: argparse.Namespace, nodes: int, seed: int) -> Scene:
    return Scene(
        nodes=nodes,
        hosts=min(nodes, options.hosts),
        trainers=options.trainers,
        others=options.others,
        rows=options.rows,
        k_best=options.k_best,
        loss=options.loss,
        seed=seed,
    )


def write(options: argparse.Namespace, sizes: Sequence[Size], seconds: float) -> None:
    """The files that were asked for."""
    if options.json is not None:
        document = {
            "experiment": "finding_experts",
            "machine": machine(),
            "seconds": round(seconds, 1),
            "settings": {name: value for name, value in vars(options).items() if name not in ("json", "plot")},
            "theirs_s": THEIRS_S,
            "sizes": [asdict(size) for size in sizes],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    if options.plot is not None:
        options.plot.write_text(plot(sizes), "utf-8")


def plot(sizes: Sequence[Size]) -> str:
    """Mean milliseconds over nodes, of the first seed of each size, beside theirs."""
    first = {size.scene.nodes: size for size in reversed(sizes)}
    series = {
        "DHT, cold": [(nodes, size.seconds("cold") * 1000) for nodes, size in sorted(first.items())],
        "DHT, warm, other rows": [(nodes, size.seconds("other") * 1000) for nodes, size in sorted(first.items())],
        "live mirror": [(nodes, size.mirror.seconds * 1000) for nodes, size in sorted(first.items())],
        "the paper (from memory)": [(nodes, seconds * 1000) for nodes, seconds in THEIRS_S.items()],
    }
    above_zero = {name: [(x, y) for x, y in line if y > 0] for name, line in series.items()}
    drawn = {name: line for name, line in above_zero.items() if line}
    return log_log_plot("Finding the 4 best experts, 50 ms one way", "nodes", "ms", drawn)


def parser() -> argparse.ArgumentParser:
    """Small by default: some minutes."""
    flags = argparse.ArgumentParser(prog="experiments.finding_experts", description=__doc__)
    flags.add_argument("--nodes", type=int, nargs="+", default=[100, 1_000], help="one simulation each (100 1000)")
    flags.add_argument("--hosts", type=int, default=MAX_HOSTS, help=f"nodes with an expert, at most ({MAX_HOSTS:,})")
    flags.add_argument("--trainers", type=int, default=20, help="that join and search (20)")
    flags.add_argument("--others", type=int, default=4, help="searches of each for other rows (4)")
    flags.add_argument("--rows", type=int, default=1, help="to find experts for at once (1)")
    flags.add_argument("--k-best", type=int, default=4)
    flags.add_argument("--loss", type=float, default=0.0, help="share of datagrams that are lost (0)")
    flags.add_argument("--seeds", type=int, default=1)
    flags.add_argument("--first-seed", type=int, default=0)
    add_flag(flags)
    flags.add_argument("--json", type=Path)
    flags.add_argument("--plot", type=Path, help="an SVG")
    return flags


if __name__ == "__main__":
    sys.exit(main())
