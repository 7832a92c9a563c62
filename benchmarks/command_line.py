"""What all benchmarks share of their command line, and the loop over their rows."""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.pairs import Comparison, Skipped, measure
from benchmarks.report import table, write_json
from benchmarks.rows import Row
from benchmarks.sides import Sides

PAIRS = 5
QUICK_PAIRS = 2
BUDGET_S = 1.5  # of one sample: some hundred calls of a row, or one of the largest
QUICK_BUDGET_S = 0.25
BUSY_LOAD = 0.7  # others' work on part of a core already shows in the shortest calls


@dataclass(frozen=True, slots=True)
class Options:
    """What every benchmark is told."""

    json: Path | None
    quick: bool
    seed: int
    runs: int
    only: tuple[str, ...]

    @property
    def budget_s(self) -> float:
        return QUICK_BUDGET_S if self.quick else BUDGET_S

    def wants(self, row: str) -> bool:
        return not self.only or any(fnmatch.fnmatchcase(row, pattern) for pattern in self.only)


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """The flags that every benchmark takes; it adds its sizes."""
    flags = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    flags.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    flags.add_argument("--quick", action="store_true", help="about a minute: without rivals and the largest sizes")
    flags.add_argument("--seed", type=int, default=0, help="of inputs and of gates (0)")
    flags.add_argument("--runs", type=size, metavar="N", help=f"counted pairs per row ({PAIRS})")
    flags.add_argument("--only", nargs="+", default=(), metavar="ROW", help="these rows; * stands for anything")
    return flags


def options_of(flags: argparse.Namespace) -> Options:
    """The common part of the flags."""
    runs = flags.runs or (QUICK_PAIRS if flags.quick else PAIRS)
    return Options(flags.json, flags.quick, flags.seed, runs, tuple(flags.only))


def size(text: str) -> int:
    """A flag's positive whole number."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def run(name: str, comparisons: Sequence[Comparison | Skipped], options: Options) -> int:
    """Measure what is wanted, tell it, write it; the exit code: 2 when no row has such a name."""
    wanted = [comparison for comparison in comparisons if options.wants(comparison.bar.row)]
    if not wanted:
        names = ", ".join(dict.fromkeys(comparison.bar.row for comparison in comparisons))
        print(f"no row is called {' or '.join(options.only)}; there are: {names}", file=sys.stderr)
        return 2
    load = os.getloadavg()[0]
    if load > BUSY_LOAD:
        print(f"this machine is busy (a load of {load:.1f}): the figures will vary", file=sys.stderr)
    started = time.monotonic()
    rows = _measure_all(wanted, options)
    seconds = time.monotonic() - started
    print(f"\n{table(rows)}\n\n{name}: {seconds:.0f} s, {options.runs} pairs per row")
    if options.json is not None:
        write_json(options.json, name, rows, seconds)
    return 0


def _measure_all(wanted: Sequence[Comparison | Skipped], options: Options) -> list[Row]:
    rows = []
    with ending_in_order(), Sides() as sides:
        for position, comparison in enumerate(wanted):
            started = time.monotonic()
            rows.append(measure(comparison, sides, options.runs))
            print(f"[{position + 1}/{len(wanted)}] {_line(rows[-1], time.monotonic() - started)}", file=sys.stderr)
            still_needed = {side.key for later in wanted[position + 1 :] for side in later.sides}
            for side in comparison.sides:
                if side.key not in still_needed:
                    sides.end(side)
    return rows


def _line(row: Row, seconds: float) -> str:
    """What is told at once: a full run takes many minutes."""
    figure = f"{row.ratio:.3g} of {row.bar:g}" if row.ratio is not None else row.why
    return f"{row.row}, against {row.reference}: {figure} ({seconds:.0f} s)"


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """SIGTERM ends the sides too, as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
