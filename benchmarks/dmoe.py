"""A DMoE layer's step beside hivemind's and the same mixture in one process; on a GPU, a node's runtime by itself.

`python -m benchmarks.dmoe --help`
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.command_line import Options, options_of, parser, run, size
from benchmarks.pairs import Comparison, Skipped, Task
from benchmarks.rivals import environment
from benchmarks.rows import Bar
from benchmarks.runtime_rows import runtime_rows
from benchmarks.sides import SideSpec
from benchmarks.worker import Work

LOCAL_THREADS = 2
HIVEMIND_HANDLERS = 4  # of 1, 2, 4 and 8: more gain nothing on two cores, one loses a third


@dataclass(frozen=True, slots=True)
class Sizes:
    """The defaults are those of the rows' names."""

    hidden: int = 128
    larger_hidden: int = 1024
    batch: int = 256
    grid: tuple[int, int] = (4, 4)
    k_best: int = 4
    nodes: int = 4
    runtime_experts: int = 64
    tf32: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    default = Sizes()
    flags = parser("dmoe", "A DMoE layer's step, forward and backward.")
    flags.add_argument("--hidden", type=size, default=default.hidden, help=f"of the small experts ({default.hidden})")
    flags.add_argument("--larger-hidden", type=size, default=default.larger_hidden, help=f"({default.larger_hidden})")
    flags.add_argument("--batch", type=size, default=default.batch, help=f"rows of a step ({default.batch})")
    flags.add_argument("--grid", type=size, nargs=2, default=default.grid, help="of the layer (4 4)")
    flags.add_argument("--k-best", type=size, default=default.k_best, help=f"experts per row ({default.k_best})")
    flags.add_argument("--nodes", type=size, default=default.nodes, help=f"that share the grid ({default.nodes})")
    flags.add_argument("--runtime-experts", type=size, default=default.runtime_experts, help="on a GPU (64)")
    flags.add_argument("--tf32", action="store_true", help="on a GPU: let both sides' products be TF32")
    given = flags.parse_args(argv)
    grid = (given.grid[0], given.grid[1])
    sizes = Sizes(
        given.hidden,
        given.larger_hidden,
        given.batch,
        grid,
        given.k_best,
        given.nodes,
        given.runtime_experts,
        given.tf32,
    )
    options = options_of(given)
    return run("dmoe", comparisons(sizes, options), options)


def comparisons(sizes: Sizes, options: Options) -> list[Comparison | Skipped]:
    """All rows."""
    row = f"dmoe-h{sizes.hidden}-b{sizes.batch}-forward-backward"
    larger_row = f"dmoe-h{sizes.larger_hidden}-b{sizes.batch}-forward-backward"
    work = Work(name="forward-backward", rows=sizes.batch, budget_s=options.budget_s)
    local = f"local, {LOCAL_THREADS} threads"
    ours, in_process = _sides("mlp", sizes.hidden, sizes, options)
    larger, larger_in_process = _sides("ffn", sizes.larger_hidden, sizes, options)
    return [
        Comparison(Bar(row, "hivemind", 100, "s"), Task(ours, work), _hivemind(sizes, work, options)),
        Comparison(Bar(row, local, 0.5, "s"), Task(ours, work), Task(in_process, work)),
        Comparison(Bar(larger_row, local, 0.8, "s"), Task(larger, work), Task(larger_in_process, work)),
        *runtime_rows(sizes.larger_hidden, sizes.runtime_experts, options, tf32=sizes.tf32),
    ]


def _sides(architecture: str, hidden_size: int, sizes: Sizes, options: Options) -> tuple[SideSpec, SideSpec]:
    """Ours and the local mixture."""
    common = _common(architecture, hidden_size, sizes, options)
    ours = SideSpec("ours", "benchmarks.workers.our_mixture", {**common, "num_nodes": sizes.nodes})
    local_settings = {**common, "num_threads": LOCAL_THREADS}
    local = SideSpec("local", "benchmarks.workers.local_mixture", local_settings, threads=LOCAL_THREADS)
    return ours, local


def _hivemind(sizes: Sizes, work: Work, options: Options) -> Task | str:
    if reason := environment.missing(quick=options.quick):
        return reason
    settings = {**_common("mlp", sizes.hidden, sizes, options), "num_handlers": HIVEMIND_HANDLERS}
    side = SideSpec("hivemind", "benchmarks.rivals.hivemind_mixture", settings, python=str(environment.PYTHON))
    return Task(side, replace(work, warm_s=0.0))  # 10 s a step: the pair that does not count has warmed it up


def _common(architecture: str, hidden_size: int, sizes: Sizes, options: Options) -> dict[str, object]:
    return {
        "architecture": architecture,
        "hidden_size": hidden_size,
        "grid": list(sizes.grid),
        "k_best": sizes.k_best,
        "seed": options.seed,
    }


if __name__ == "__main__":
    sys.exit(main())
