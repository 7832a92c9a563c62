"""Stores and gets of the DHT: beside hivemind's and the bare `kademlia` package, and with a part of the peers dead.

`python -m benchmarks.dht --help`
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.command_line import Options, options_of, parser, run, size
from benchmarks.dht_work import EXPERTS_DECLARED
from benchmarks.pairs import Comparison, Skipped, Task
from benchmarks.rivals import environment
from benchmarks.rows import Bar
from benchmarks.sides import SideSpec
from benchmarks.worker import Work

RIVAL = "hivemind"
BARE = "bare kademlia"
HEALTHY = "ours, healthy (p95)"
DEAD_PERCENT = (10, 30)
OPERATIONS = (
    100  # of a 95th percentile: about as many as there are peers, so that most meet the dead for the first time
)
QUICK_OPERATIONS = 40
HEALED = "90 s after the others died; measured once"


@dataclass(frozen=True, slots=True)
class Sizes:
    """The defaults are those of the rows' names."""

    fewer_nodes: int = 32
    nodes: int = 100


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    default = Sizes()
    flags = parser("dht", "Stores and gets of the DHT.")
    flags.add_argument("--fewer-nodes", type=size, default=default.fewer_nodes, help=f"({default.fewer_nodes})")
    flags.add_argument("--nodes", type=size, default=default.nodes, help=f"({default.nodes})")
    given = flags.parse_args(argv)
    options = options_of(given)
    return run("dht", comparisons(Sizes(given.fewer_nodes, given.nodes), options), options)


def comparisons(sizes: Sizes, options: Options) -> list[Comparison | Skipped]:
    """All rows; those with the most processes last."""
    fewer, nodes = sizes.fewer_nodes, sizes.nodes
    get, store = Work(name="get", budget_s=options.budget_s), Work(name="store", budget_s=options.budget_s)
    declare = Work(name="declare", budget_s=options.budget_s)
    return [
        Comparison(Bar(f"get-{nodes}", BARE, 0.7, "s"), _ours(nodes, get, options), _bare(nodes, get, options)),
        Comparison(Bar(f"store-{nodes}", BARE, 0.7, "s"), _ours(nodes, store, options), _bare(nodes, store, options)),
        *_with_dead("get", 0.33, nodes, options),
        *_with_dead("store", 0.1, nodes, options),
        _beside_rival(Bar(f"store-{fewer}", RIVAL, 5, "s"), fewer, store, options),
        _beside_rival(Bar(f"declare-{EXPERTS_DECLARED}-experts", RIVAL, 200, "s"), fewer, declare, options),
        _beside_rival(Bar(f"store-{nodes}", RIVAL, 5, "s"), nodes, store, options),
    ]


def _with_dead(name: str, bar: float, nodes: int, options: Options) -> list[Comparison | Skipped]:
    """The first operations after peers died unnoticed, and the same when the tables have healed."""
    num_operations = QUICK_OPERATIONS if options.quick else OPERATIONS
    work = Work(name=f"{name}-p95", rows=num_operations, budget_s=options.budget_s)
    healthy = _ours(nodes, work, options)
    rows: list[Comparison | Skipped] = []
    for percent in DEAD_PERCENT:
        row = f"{name}-{nodes}-{percent}pct-dead"
        share = percent / 100
        rows.append(Comparison(Bar(row, HEALTHY, bar, "s"), _ours(nodes, work, options, dead=share), healthy))
        healed = Bar(f"{row}-healed", HEALTHY, bar, "s")
        ours = _ours(nodes, work, options, dead=share, healed=True)
        rows.append(
            Skipped(healed, environment.BY_QUICK)
            if options.quick
            else Comparison(healed, ours, healthy, once=True, note=HEALED)
        )
    return rows


def _beside_rival(bar: Bar, nodes: int, work: Work, options: Options) -> Comparison:
    reference: Task | str | None = environment.missing(quick=options.quick)
    if reference is None:
        settings = {"num_nodes": nodes, "seed": options.seed}
        side = SideSpec(RIVAL, "benchmarks.rivals.hivemind_dht", settings, python=str(environment.PYTHON))
        reference = Task(side, work)
    return Comparison(bar, _ours(nodes, work, options), reference)


def _ours(nodes: int, work: Work, options: Options, *, dead: float = 0.0, healed: bool = False) -> Task:
    settings = {"num_nodes": nodes, "seed": options.seed, "dead_share": dead, "healed": healed}
    return Task(SideSpec("ours", "benchmarks.workers.our_dht", settings), work)


def _bare(nodes: int, work: Work, options: Options) -> Task:
    settings = {"num_nodes": nodes, "seed": options.seed}
    return Task(SideSpec("bare", "benchmarks.workers.bare_dht", settings), work)


if __name__ == "__main__":
    sys.exit(main())
