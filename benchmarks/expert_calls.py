"""Calls of one remote expert: what they cost beside hivemind's, a bare ZeroMQ echo and the same module in process.

`python -m benchmarks.expert_calls --help`
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.command_line import BY_QUICK, Options, options_of, parser, run, size
from benchmarks.node_rows import node_rows
from benchmarks.pairs import Comparison, Skipped, Task
from benchmarks.rivals import environment
from benchmarks.rows import Bar
from benchmarks.sides import SideSpec
from benchmarks.worker import Work


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
    budget_s = options.budget_s
    one = Work(name="forward", budget_s=budget_s)
    both = Work(name="forward-backward", budget_s=budget_s)
    threads = Work(name="threads", callers=sizes.callers, budget_s=budget_s)
    in_flight = Work(name="in-flight", callers=sizes.callers, budget_s=budget_s)
    many = Work(name="forward", rows=sizes.rows, budget_s=budget_s)
    many_both = Work(name="forward-backward", rows=sizes.rows, budget_s=budget_s)

    ours = SideSpec("ours", "benchmarks.workers.our_experts", _of("nop", sizes.hidden, options))
    plain = SideSpec("ours", "benchmarks.workers.our_experts", {**_of("nop", sizes.hidden, options), "plain": True})
    echo = SideSpec("echo", "benchmarks.workers.zeromq_echo", {"hidden_size": sizes.hidden, "plain": False})
    echo_plain = SideSpec("echo", "benchmarks.workers.zeromq_echo", {"hidden_size": sizes.hidden, "plain": True})

    def rival(architecture: str, work: Work) -> Task | str:
        return hivemind_task(_of(architecture, sizes.hidden, options), work, options)

    callers, rows = f"{sizes.callers}", f"{sizes.rows}rows"
    found: list[Comparison | Skipped] = [
        Comparison(Bar("nop-1row-forward", "hivemind", 14, "s"), Task(ours, one), rival("nop", one)),
        Comparison(Bar("nop-1row-forward", "zeromq-echo", 0.4, "s"), Task(ours, one), Task(echo, one)),
        Comparison(Bar("nop-1row-forward-backward", "hivemind", 13, "s"), Task(ours, both), rival("nop", both)),
        Comparison(
            Bar(f"nop-{callers}callers-forward", "hivemind", 10, "1/s"), Task(ours, threads), rival("nop", threads)
        ),
        Comparison(
            Bar(f"nop-{callers}inflight-forward", f"hivemind, {callers} callers", 18, "1/s"),
            Task(ours, in_flight),
            rival("nop", threads),
        ),
        Comparison(Bar(f"nop-{rows}-forward-curve", "hivemind", 4, "s"), Task(ours, many), rival("nop", many)),
        Comparison(Bar(f"nop-{rows}-forward-curve", "zeromq-echo", 0.7, "s"), Task(ours, many), Task(echo, many)),
        Comparison(Bar(f"nop-{rows}-forward-plain", "hivemind", 12, "s"), Task(plain, many), rival("nop", many)),
        Comparison(
            Bar(f"nop-{rows}-forward-plain", "zeromq-echo plain", 0.7, "s"), Task(plain, many), Task(echo_plain, many)
        ),
        Comparison(
            Bar(f"mlp{sizes.hidden}-{rows}-forward-backward", "hivemind", 1.5, "s"),
            Task(SideSpec("ours", "benchmarks.workers.our_experts", _of("mlp", sizes.hidden, options)), many_both),
            rival("mlp", many_both),
        ),
    ]
    found += [_beside_local(num_rows, sizes, options) for num_rows in (sizes.fewer_rows, sizes.rows)]
    found.append(_many_experts(sizes, in_flight, options))
    return found + node_rows(sizes.node_hidden, sizes.node_experts, options)


def hivemind_task(settings: dict[str, object], work: Work, options: Options) -> Task | str:
    """The same work by the rival, or why there is none."""
    if options.quick:
        return BY_QUICK
    if not environment.is_installed():
        return environment.HOW
    side = SideSpec("hivemind", "benchmarks.rivals.hivemind_experts", settings, python=str(environment.PYTHON))
    return Task(side, work)


def _beside_local(num_rows: int, sizes: Sizes, options: Options) -> Comparison:
    settings = _of("ffn", sizes.hidden, options)
    work = Work(name="forward-backward", rows=num_rows, budget_s=options.budget_s)
    return Comparison(
        Bar(f"ffn{sizes.hidden}-{num_rows}rows-forward-backward", "local", 0.9, "s"),
        Task(SideSpec("ours", "benchmarks.workers.our_experts", settings), work),
        Task(SideSpec("local", "benchmarks.workers.local_expert", settings), work),
    )


def _many_experts(sizes: Sizes, work: Work, options: Options) -> Comparison:
    one = _of("nop", sizes.hidden, options)
    return Comparison(
        Bar(f"calls-per-second-{sizes.experts}-experts", "the same with 1 expert", 0.8, "1/s"),
        Task(SideSpec("ours", "benchmarks.workers.our_experts", {**one, "num_experts": sizes.experts}), work),
        Task(SideSpec("ours, 1 expert", "benchmarks.workers.our_experts", one), work),
    )


def _of(architecture: str, hidden_size: int, options: Options) -> dict[str, object]:
    return {"architecture": architecture, "hidden_size": hidden_size, "seed": options.seed}


if __name__ == "__main__":
    sys.exit(main())
