"""Throughput of training on nodes a long way off, with calls lost on the way.

`python -m benchmarks.latency --help`

Everything goes through WAN lines of ours, also without delay, so that both have the lines' own cost. A delay of 100 ms
is a call's: 50 ms each way. A lost call is a request or a reply that never arrives, drawn for each call by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.command_line import Options, options_of, parser, run, size
from benchmarks.pairs import Comparison, Skipped, Task
from benchmarks.rows import Bar
from benchmarks.sides import SideSpec
from benchmarks.worker import Work

DELAY_S = 0.1
LOST = 0.1
GRACE_S = 0.25  # a project's default is 0.5; four in five rounds of 16 calls lose one, and wait for so long
DEADLINE_S = 10.0  # a project's default; a row of which all calls are lost waits a quarter of it
ASK_TIMEOUT_S = 600.0  # a sample is five times as many batches as are in flight


@dataclass(frozen=True, slots=True)
class Sizes:
    """The defaults are those of the rows' names."""

    architecture: str = "mlp"
    hidden: int = 256
    layers: int = 8
    grid: tuple[int, int] = (4, 4)
    k_best: int = 4
    rows: int = 64
    in_flight: int = 64
    nodes: int = 4
    grace_s: float = GRACE_S
    deadline_s: float = DEADLINE_S


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    default = Sizes()
    flags = parser("latency", "Training on nodes a long way off: DMoE layers, and a chain of equal FLOPs per row.")
    flags.add_argument("--architecture", default=default.architecture, help=f"of the experts ({default.architecture})")
    flags.add_argument("--hidden", type=size, default=default.hidden, help=f"features of a row ({default.hidden})")
    flags.add_argument("--layers", type=size, default=default.layers, help=f"one after another ({default.layers})")
    flags.add_argument("--grid", type=size, nargs=2, default=default.grid, help="of each layer (4 4)")
    flags.add_argument("--k-best", type=size, default=default.k_best, help=f"a square: 1, 4 ... ({default.k_best})")
    flags.add_argument("--rows", type=size, default=default.rows, help=f"of a batch ({default.rows})")
    flags.add_argument("--in-flight", type=size, default=default.in_flight, help=f"batches ({default.in_flight})")
    flags.add_argument("--nodes", type=size, default=default.nodes, help=f"of one thread each ({default.nodes})")
    flags.add_argument("--grace-s", type=float, default=default.grace_s, help=f"of the layers ({default.grace_s})")
    flags.add_argument("--deadline-s", type=float, default=default.deadline_s, help=f"({default.deadline_s})")
    given = flags.parse_args(argv)
    sizes = Sizes(
        given.architecture,
        given.hidden,
        given.layers,
        (given.grid[0], given.grid[1]),
        given.k_best,
        given.rows,
        given.in_flight,
        given.nodes,
        given.grace_s,
        given.deadline_s,
    )
    options = options_of(given)
    return run("latency", comparisons(sizes, options), options)


def comparisons(sizes: Sizes, options: Options) -> list[Comparison | Skipped]:
    """All rows. One side does all: what is not timed does not run."""
    settings = {
        "architecture": sizes.architecture,
        "hidden_size": sizes.hidden,
        "num_layers": sizes.layers,
        "grid": list(sizes.grid),
        "k_best": sizes.k_best,
        "num_nodes": sizes.nodes,
        "grace_s": sizes.grace_s,
        "deadline_s": sizes.deadline_s,
        "seed": options.seed,
    }
    side = SideSpec("ours", "benchmarks.workers.our_distance", settings, ask_timeout_s=ASK_TIMEOUT_S)
    near = Work(name="dmoe", rows=sizes.rows, callers=sizes.in_flight)
    far = replace(near, delay_s=DELAY_S)
    chain = replace(far, name="chain", callers=1)
    row = "throughput-100ms"
    return [
        Comparison(
            Bar(f"{row}-10pct-failures", "ours at 0 ms, no failures", 0.9, "rows/s"),
            Task(side, replace(far, lost=LOST)),
            Task(side, near),
        ),
        Comparison(
            Bar(row, "model-parallel chain of equal FLOPs per row, one batch at a time", 10, "rows/s"),
            Task(side, far),
            Task(side, chain),
        ),
        Comparison(
            Bar(row, f"the chain with {sizes.in_flight} batches in flight", 0, "rows/s"),
            Task(side, far),
            Task(side, replace(chain, callers=sizes.in_flight)),
            note="shown beside it, without a bar",
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
