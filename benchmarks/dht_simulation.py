"""Gets in a simulated DHT of up to 10,000 peers that come and go, lose datagrams and lie.

`python -m benchmarks.dht_simulation --help`. `--plot FILE` draws the growth, as in docs/dht-growth.svg.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.command_line import Options, options_of, parser, run, size
from benchmarks.pairs import Comparison, Skipped, Task
from benchmarks.plot import log_log_plot
from benchmarks.rivals import environment
from benchmarks.rows import Bar
from benchmarks.sides import Sides, SideSpec, running
from benchmarks.worker import Work

ASK_TIMEOUT_S = 3_600.0  # 10,000 peers take a quarter of an hour


@dataclass(frozen=True, slots=True)
class Sizes:
    """The defaults are those of the rows' names."""

    sizes: tuple[int, ...] = (100, 300, 1_000, 3_000, 10_000)
    hostile_nodes: int = 1_000
    gets: int = 1_000
    keys: int = 100
    duration_s: float = 20.0


QUICK = Sizes(sizes=(30, 60), hostile_nodes=60, gets=100, keys=20, duration_s=10.0)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    default = Sizes()
    flags = parser("dht_simulation", "Gets among simulated peers: churn of 10 % a minute, 5 % loss, 50 ms one way.")
    flags.add_argument("--nodes", type=size, nargs="+", help="sizes, the largest last (100 300 1000 3000 10000)")
    flags.add_argument("--hostile-nodes", type=size, help=f"of whom a fifth lie ({default.hostile_nodes})")
    flags.add_argument("--gets", type=size, help=f"per size ({default.gets})")
    flags.add_argument("--duration-s", type=float, help=f"virtual, per size ({default.duration_s:g})")
    flags.add_argument("--plot", type=Path, metavar="FILE", help="draw mean round trips over sizes there, as SVG")
    given = flags.parse_args(argv)
    options = options_of(given)
    sizes = QUICK if options.quick else default
    sizes = replace(
        sizes,
        sizes=tuple(given.nodes or sizes.sizes),
        hostile_nodes=given.hostile_nodes or sizes.hostile_nodes,
        gets=given.gets or sizes.gets,
        duration_s=given.duration_s or sizes.duration_s,
    )
    if given.plot is not None:
        return _plot(given.plot, sizes, options)
    return run("dht_simulation", comparisons(sizes, options), options)


def comparisons(sizes: Sizes, options: Options) -> list[Comparison | Skipped]:
    """All rows. One run of each size, which is its own median of a thousand gets."""
    honest, hostile = _sides(sizes, options)
    largest = sizes.sizes[-1]

    def row(name: str, limit: float, unit: str, side: SideSpec, figure: str) -> Comparison:
        return Comparison(Bar(name, f"limit {limit:g}", 1, unit), Task(side, Work(name=figure)), limit, once=True)

    rows: list[Comparison | Skipped] = [
        row(f"gets-right-{largest}-nodes", 0.999, "share", honest, "right"),
        row(f"median-round-trips-{largest}-nodes", 3, "round trips", honest, "median-round-trips"),
        row("growth", 0.25, "round trips", honest, "growth"),
        row("gets-right-20pct-hostile", 0.99, "share", hostile, "right"),
    ]
    if options.quick:
        return [rows[0], rows[1], Skipped(rows[2].bar, environment.BY_QUICK), rows[3]]
    return rows


def _sides(sizes: Sizes, options: Options) -> tuple[SideSpec, SideSpec]:
    """The growing swarm, and the one with liars."""
    common: dict[str, object] = {
        "num_gets": sizes.gets,
        "num_keys": sizes.keys,
        "duration_s": sizes.duration_s,
        "seed": options.seed,
    }
    module = "benchmarks.workers.our_simulation"
    churning = {**common, "sizes": list(sizes.sizes), "churn_per_min": 0.1, "hostile": 0.0}
    lying = {**common, "sizes": [sizes.hostile_nodes], "churn_per_min": 0.0, "hostile": 0.2}
    honest = SideSpec("ours", module, churning, ask_timeout_s=ASK_TIMEOUT_S)
    return honest, SideSpec("ours", module, lying, ask_timeout_s=ASK_TIMEOUT_S)


def _plot(file: Path, sizes: Sizes, options: Options) -> int:
    side, _ = _sides(sizes, options)
    points: list[tuple[float, float]] = []
    with Sides() as sides:
        worker = sides.start(side)
        with running(worker):
            for number in sizes.sizes:
                points.append((number, worker.measure(Work(name="mean-round-trips", rows=number))))
                print(f"{number} peers: {points[-1][1]:.2f} round trips", file=sys.stderr, flush=True)
            figures = {name: worker.measure(Work(name=name)) for name in ("growth", "right", "median-round-trips")}
    print(
        f"growth {figures['growth']:.3f} per doubling; among {sizes.sizes[-1]} peers {figures['right']:.4f} of the "
        f"gets right, median {figures['median-round-trips']:.1f} round trips",
        file=sys.stderr,
    )
    title = "A get in a simulated DHT: 10 % churn a minute, 5 % loss"
    file.write_text(log_log_plot(title, "peers", "mean round trips", {"ours": points}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
