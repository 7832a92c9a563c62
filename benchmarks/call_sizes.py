"""What a forward of `nop` costs as its batch grows: ours, hivemind's and a bare ZeroMQ echo, as a table and a plot.

`python -m benchmarks.call_sizes --help`. Each size is measured by all in turn, as often as there are runs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command_line import Options, ending_in_order, size
from benchmarks.expert_calls import Sizes, echo_side, our_side, rival_task
from benchmarks.pairs import Task
from benchmarks.plot import log_log_plot
from benchmarks.report import shown
from benchmarks.sides import SideFailed, Sides
from benchmarks.worker import Work

ROWS = (1, 4, 16, 64, 256, 1024, 4096)
RUNS = 3
MILLISECONDS = 1e3


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.call_sizes", description=__doc__)
    flags.add_argument("--seed", type=int, default=0, help="of inputs (0)")
    flags.add_argument("--runs", type=size, default=RUNS, metavar="N", help=f"of each size ({RUNS})")
    flags.add_argument("--hidden", type=size, default=Sizes().hidden, help=f"numbers per row ({Sizes().hidden})")
    flags.add_argument(
        "--rows", type=size, nargs="+", default=ROWS, help=f"of the batches ({', '.join(map(str, ROWS))})"
    )
    flags.add_argument("--svg", type=Path, metavar="FILE", help="write the plot there")
    given = flags.parse_args(argv)
    options = Options(json=None, quick=False, seed=given.seed, runs=given.runs, only=())
    series = _measured(Sizes(hidden=given.hidden), given.rows, options)
    for name, points in series.items():
        print(f"{name}: " + ", ".join(f"{rows} rows {shown(seconds, 's')}" for rows, seconds in points))
    if given.svg is not None:
        lines = {name: [(rows, seconds * MILLISECONDS) for rows, seconds in line] for name, line in series.items()}
        title = f"Forward of nop, {given.hidden} float32 numbers per row"
        given.svg.write_text(log_log_plot(title, "rows of the batch", "milliseconds per call", lines), "utf-8")
    return 0


def _measured(sizes: Sizes, rows: Sequence[int], options: Options) -> dict[str, list[tuple[int, float]]]:
    """Seconds per call, by who makes it. Who cannot be measured is left out."""
    work = Work(name="forward", budget_s=options.budget_s)
    tasks = {
        "ours, CURVE": Task(our_side("nop", sizes, options), work),
        "ours, plain": Task(our_side("nop", sizes, options, plain=True), work),
        "ZeroMQ echo, CURVE": Task(echo_side(sizes), work),
        "ZeroMQ echo, plain": Task(echo_side(sizes, plain=True), work),
    }
    rival = rival_task("nop", work, sizes, options)
    if isinstance(rival, Task):
        tasks["hivemind"] = rival
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in tasks}
    with ending_in_order(), Sides() as sides:
        for num_rows in rows:
            values: dict[str, list[float]] = {name: [] for name in tasks}
            for _ in range(options.runs):
                for name, task in tasks.items():
                    try:
                        values[name].append(task.of(num_rows).measured(sides))
                    except SideFailed as error:
                        print(f"{name}, {num_rows} rows: {error}", file=sys.stderr)
            for name, seconds in values.items():
                if seconds:
                    found[name].append((num_rows, statistics.median(seconds)))
    return {name: points for name, points in found.items() if points}


if __name__ == "__main__":
    sys.exit(main())
