"""Ours and a reference in turn: A B A B ..., each stopped while the other is timed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.rows import Bar, Row, alone, broken, compared
from benchmarks.sides import SideFailed, Sides, SideSpec, running
from benchmarks.worker import Work


@dataclass(frozen=True, slots=True)
class Task:
    """A side and what it is to do."""

    side: SideSpec
    work: Work

    def of(self, num_rows: int) -> Task:
        """The same of another size."""
        return replace(self, work=replace(self.work, rows=num_rows))

    def measured(self, sides: Sides) -> float:
        """Raises SideFailed."""
        side = sides.start(self.side)
        with running(side):
            return side.measure(self.work)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row: ours, beside a reference or a fixed limit, or with the reason why there is none."""

    bar: Bar
    ours: Task
    reference: Task | float | str
    once: bool = False  # what does not vary and takes long: measured once, without warming up
    note: str | None = None

    @property
    def sides(self) -> list[SideSpec]:
        tasks = [self.ours, self.reference] if isinstance(self.reference, Task) else [self.ours]
        return [task.side for task in tasks]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that is not measured, and why."""

    bar: Bar
    why: str
    sides: tuple[SideSpec, ...] = ()


def measure(comparison: Comparison | Skipped, sides: Sides, runs: int) -> Row:
    """The row. Ours that fails does not hold; a reference that fails leaves the row open."""
    if isinstance(comparison, Skipped):
        return alone(comparison.bar, [], comparison.why)
    try:
        return _compare(comparison, sides, 1 if comparison.once else runs)
    except SideFailed as error:
        return broken(comparison.bar, str(error))


def _compare(comparison: Comparison, sides: Sides, runs: int) -> Row:
    """Raises SideFailed when ours does."""
    missing = comparison.reference if isinstance(comparison.reference, str) else None
    pairs: list[tuple[float, float]] = []
    for number in range(runs + (not comparison.once)):
        mine, theirs = comparison.ours.measured(sides), 0.0
        if missing is None:
            try:
                theirs = _reference(comparison.reference, sides)
            except SideFailed as error:
                missing = str(error)
        if number or comparison.once:  # else it has warmed both up and does not count
            pairs.append((mine, theirs))
    if missing is not None:
        return alone(comparison.bar, [mine for mine, _ in pairs], missing)
    return compared(comparison.bar, pairs, comparison.note)


def _reference(reference: Task | float | str, sides: Sides) -> float:
    if isinstance(reference, Task):
        return reference.measured(sides)
    return float(reference)
