"""Calls of one remote expert: what they cost beside hivemind's, a bare ZeroMQ echo and the same module in process.

`python -m benchmarks.expert_calls --help`
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.command_line import Options, options_of, parser, run, size
from benchmarks.node_rows import node_rows
from benchmarks.pairs import Comparison, Skipped, Task
from benchmarks.rivals import environment
from benchmarks.rows import Bar
from benchmarks.sides import SideSpec
from benchmarks.worker import Work

RIVAL = "hivemind"


@dataclass(frozen=True, slots=True)
class Sizes:
    """The defaults are those of the rows' names."""

    hidden: int = 1024
    rows: int = 2048
    fewer_rows: int = 256
    callers: int = 32
    experts: int = 1024
    node_hidden: int = 256
    node_experts: tuple[int, int] = (16, 256)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    flags = parser("expert_calls", "Calls of one remote expert.")
    default = Sizes()
    flags.add_argument("--hidden", type=size, default=default.hidden, help=f"of the experts called ({default.hidden})")
    flags.add_argument("--rows", type=size, default=default.rows, help=f"of a large batch ({default.rows})")
    flags.add_argument("--fewer-rows", type=size, default=default.fewer_rows, help=f"({default.fewer_rows})")
    flags.add_argument("--callers", type=size, default=default.callers, help=f"at once ({default.callers})")
    flags.add_argument("--experts", type=size, default=default.experts, help=f"of a full node ({default.experts})")
    flags.add_argument("--node-hidden", type=size, default=default.node_hidden, help=f"({default.node_hidden})")
    flags.add_argument("--node-experts", type=size, nargs=2, default=default.node_experts, help="of the nodes started")
    given = flags.parse_args(argv)
    sizes = Sizes(
        given.hidden,
        given.rows,
        given.fewer_rows,
        given.callers,
        given.experts,
        given.node_hidden,
        (given.node_experts[0], given.node_experts[1]),
    )
    options = options_of(given)
    return run("expert_calls", comparisons(sizes, options), options)


def comparisons(sizes: Sizes, options: Options) -> list[Comparison | Skipped]:
    """All rows, in an order that lets few processes live at once."""
    return [
        *_short_calls(sizes, options),
        *_large_batches(sizes, options),
        *_trained_experts(sizes, options),
        _many_experts(sizes, options),
        *node_rows(sizes.node_hidden, sizes.node_experts, options),
    ]


def _short_calls(sizes: Sizes, options: Options) -> list[Comparison]:
    """One row of `nop`: what a call costs, and how many are answered per second."""
    ours, echo = our_side("nop", sizes, options), echo_side(sizes)
    one = Work(name="forward", budget_s=options.budget_s)
    both = Work(name="forward-backward", budget_s=options.budget_s)
    threads = Work(name="threads", callers=sizes.callers, budget_s=options.budget_s)
    in_flight = Work(name="in-flight", callers=sizes.callers, budget_s=options.budget_s)

    def beside_rival(row: str, bar: float, unit: str, mine: Work, theirs: Work, reference: str = RIVAL) -> Comparison:
        return Comparison(Bar(row, reference, bar, unit), Task(ours, mine), rival_task("nop", theirs, sizes, options))

    callers = sizes.callers
    return [
        beside_rival("nop-1row-forward", 14, "s", one, one),
        Comparison(Bar("nop-1row-forward", "zeromq-echo", 0.4, "s"), Task(ours, one), Task(echo, one)),
        beside_rival("nop-1row-forward-backward", 13, "s", both, both),
        beside_rival(f"nop-{callers}callers-forward", 10, "1/s", threads, threads),
        beside_rival(f"nop-{callers}inflight-forward", 18, "1/s", in_flight, threads, f"{RIVAL}, {callers} callers"),
    ]


def _large_batches(sizes: Sizes, options: Options) -> list[Comparison]:
    """Many rows of `nop`: bytes per second, encrypted and not."""
    work = Work(name="forward", rows=sizes.rows, budget_s=options.budget_s)
    rows = []
    for name, plain, bar, echo in (("curve", False, 4, "zeromq-echo"), ("plain", True, 12, "zeromq-echo plain")):
        row = f"nop-{sizes.rows}rows-forward-{name}"
        ours = Task(our_side("nop", sizes, options, plain=plain), work)
        rows += [
            Comparison(Bar(row, RIVAL, bar, "s"), ours, rival_task("nop", work, sizes, options)),
            Comparison(Bar(row, echo, 0.7, "s"), ours, Task(echo_side(sizes, plain=plain), work)),
        ]
    return rows


def _trained_experts(sizes: Sizes, options: Options) -> list[Comparison | Skipped]:
    """Experts whose own work is most of the time."""

    def work(num_rows: int) -> Work:
        work = Work(name="forward-backward", rows=num_rows, budget_s=options.budget_s)
        return replace(work, warm_s=0.0) if options.quick else work

    large = work(sizes.rows)
    rows: list[Comparison | Skipped] = [
        Comparison(
            Bar(f"mlp{sizes.hidden}-{sizes.rows}rows-forward-backward", RIVAL, 1.5, "s"),
            Task(our_side("mlp", sizes, options), large),
            rival_task("mlp", large, sizes, options),
        )
    ]
    for num_rows in (sizes.fewer_rows, sizes.rows):
        bar = Bar(f"ffn{sizes.hidden}-{num_rows}rows-forward-backward", "local", 0.9, "s")
        local = SideSpec("local", "benchmarks.workers.local_expert", _of("ffn", sizes, options))
        rows.append(
            Comparison(bar, Task(our_side("ffn", sizes, options), work(num_rows)), Task(local, work(num_rows)))
            if num_rows == sizes.fewer_rows or not options.quick
            else Skipped(bar, environment.BY_QUICK)
        )
    return rows


def _many_experts(sizes: Sizes, options: Options) -> Comparison:
    """A full node beside a node of one expert."""
    work = Work(name="in-flight", callers=sizes.callers, budget_s=options.budget_s)
    one = our_side("nop", sizes, options)
    many = replace(one, settings={**one.settings, "num_experts": sizes.experts})
    bar = Bar(f"calls-per-second-{sizes.experts}-experts", "the same with 1 expert", 0.8, "1/s")
    return Comparison(bar, Task(many, work), Task(one, work))


def our_side(architecture: str, sizes: Sizes, options: Options, *, plain: bool = False) -> SideSpec:
    """A trainer and a node of one expert."""
    settings = {**_of(architecture, sizes, options), "plain": plain}
    return SideSpec("ours", "benchmarks.workers.our_experts", settings)


def echo_side(sizes: Sizes, *, plain: bool = False) -> SideSpec:
    """A bare ZeroMQ echo of the same bytes."""
    return SideSpec("echo", "benchmarks.workers.zeromq_echo", {"hidden_size": sizes.hidden, "plain": plain})


def rival_task(architecture: str, work: Work, sizes: Sizes, options: Options) -> Task | str:
    """The same work by the rival, or why there is none."""
    if reason := environment.missing(quick=options.quick):
        return reason
    settings = _of(architecture, sizes, options)
    return Task(SideSpec(RIVAL, "benchmarks.rivals.hivemind_experts", settings, python=str(environment.PYTHON)), work)


def _of(architecture: str, sizes: Sizes, options: Options) -> dict[str, object]:
    return {"architecture": architecture, "hidden_size": sizes.hidden, "seed": options.seed}


if __name__ == "__main__":
    sys.exit(main())
