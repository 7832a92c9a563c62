"""What a trainer knows of who lives: the choice of experts, a cold beam search, and how soon the vanished are out.

`python -m benchmarks.directory --help`
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.command_line import Options, options_of, parser, run, size
from benchmarks.pairs import Comparison, Skipped, Task
from benchmarks.rivals import environment
from benchmarks.rows import Bar
from benchmarks.sides import SideSpec
from benchmarks.worker import Work

RIVAL = "hivemind"
RIVAL_NODES = 4
DEAD = 0.1
K_BEST = 4
CHOICE_LIMIT_S = 4e-3
ROUND_TRIPS = 4
KILLED_LIMIT_S, SILENT_LIMIT_S = 3.0, 12.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """The defaults are those of the rows' names."""

    side: int = 64
    nodes: int = 64
    batch: int = 256
    rivals_batch: int = 16


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    default = Sizes()
    flags = parser("directory", "Who lives, as a trainer knows it.")
    flags.add_argument("--side", type=size, default=default.side, help=f"of the square grid ({default.side})")
    flags.add_argument("--nodes", type=size, default=default.nodes, help=f"that share it ({default.nodes})")
    flags.add_argument("--batch", type=size, default=default.batch, help=f"rows to choose for ({default.batch})")
    flags.add_argument("--rivals-batch", type=size, default=default.rivals_batch, help=f"({default.rivals_batch})")
    given = flags.parse_args(argv)
    options = options_of(given)
    sizes = Sizes(given.side, given.nodes, given.batch, given.rivals_batch)
    return run("directory", comparisons(sizes, options), options)


def comparisons(sizes: Sizes, options: Options) -> list[Comparison | Skipped]:
    """All rows."""
    experts = sizes.side**2
    common: dict[str, object] = {"grid": [sizes.side] * 2, "k_best": K_BEST, "seed": options.seed}
    ours = SideSpec("ours", "benchmarks.workers.our_directory", {**common, "num_nodes": sizes.nodes, "dead": DEAD})
    choice = Work(name="top4", rows=sizes.batch, budget_s=options.budget_s)
    smaller = Work(name="top4", rows=sizes.rivals_batch, budget_s=options.budget_s)
    exact = Bar(f"top4-of-{experts}-batch{sizes.batch}-mirror", "limit 4 ms", 1, "s")
    warm = Bar(f"top4-of-{experts}-batch{sizes.rivals_batch}-warm", RIVAL, 50, "s")
    cold = Bar("beam-search-cold-round-trips", f"limit {ROUND_TRIPS}", 1, "round trips")
    silent = Bar("vanished-node-out-of-mirror", f"limit {SILENT_LIMIT_S:g} s", 1, "s")
    killed = Bar("killed-node-out-of-mirror", f"limit {KILLED_LIMIT_S:g} s", 1, "s")
    mirror = SideSpec("ours", "benchmarks.workers.our_mirror", {"seed": options.seed})
    rows: list[Comparison | Skipped] = [
        Comparison(exact, Task(ours, choice), CHOICE_LIMIT_S),
        Comparison(warm, Task(ours, smaller), _hivemind(common, smaller, options)),
        Comparison(cold, Task(ours, Work(name="cold-round-trips")), ROUND_TRIPS, once=True),
        Comparison(silent, Task(mirror, Work(name="silent")), SILENT_LIMIT_S),
        Comparison(killed, Task(mirror, Work(name="killed")), KILLED_LIMIT_S),
    ]
    if options.quick:
        return [*rows[:2], *(Skipped(row.bar, environment.BY_QUICK) for row in rows[2:])]
    return rows


def _hivemind(common: dict[str, object], work: Work, options: Options) -> Task | str:
    if reason := environment.missing(quick=options.quick):
        return reason
    settings = {**common, "num_nodes": RIVAL_NODES}
    return Task(SideSpec(RIVAL, "benchmarks.rivals.hivemind_beam", settings, python=str(environment.PYTHON)), work)


if __name__ == "__main__":
    sys.exit(main())
