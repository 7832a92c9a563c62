"""How much of a one-row call is this machine's: a bare hop in Python beside a bare ZeroMQ echo, and ours beside both.

`python -m benchmarks.bare_hop --help`
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.command_line import Options, options_of, parser, run, size
from benchmarks.expert_calls import Sizes, echo_side, our_side
from benchmarks.pairs import Comparison, Skipped, Task
from benchmarks.rows import Bar
from benchmarks.sides import SideSpec
from benchmarks.worker import Work


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    flags = parser("bare_hop", "The floor under a one-row call of a remote expert.")
    default = Sizes()
    flags.add_argument("--hidden", type=size, default=default.hidden, help=f"of the experts called ({default.hidden})")
    given = flags.parse_args(argv)
    options = options_of(given)
    return run("bare_hop", comparisons(Sizes(hidden=given.hidden), options), options)


def comparisons(sizes: Sizes, options: Options) -> list[Comparison | Skipped]:
    """The hop beside the echo, with the bar that a call has there; ours beside the hop."""
    one = Work(name="forward", budget_s=options.budget_s)
    hop = Task(SideSpec("hop", "benchmarks.workers.bare_hop", {"hidden_size": sizes.hidden}), one)
    return [
        Comparison(Bar("bare-hop-1row-forward", "zeromq-echo", 0.4, "s"), hop, Task(echo_side(sizes), one)),
        Comparison(Bar("nop-1row-forward", "bare-hop", 0.5, "s"), Task(our_side("nop", sizes, options), one), hop),
    ]


if __name__ == "__main__":
    sys.exit(main())
