"""Bounded curves: a run's metric over its steps, thinned as it grows, and a chart's last minutes. Pure."""

from __future__ import annotations

from collections import deque

MAX_POINTS = 600  # per metric of a run: more than a chart has pixels to show
CHART_SPAN_S = 300.0
CHART_EVERY_S = 2.0


class ThinnedCurve:
    """Values by step. When it is full, every second point goes and new ones come half as often; the latest is always
    kept.

    `unsaved` are points that the database lacks; `rewritten` says that it must drop what it has first.
    """

    def __init__(self, max_points: int = MAX_POINTS, *, rewritten: bool = False) -> None:
        self.points: dict[int, float] = {}
        self.latest: tuple[int, float] | None = None
        self.stride = 1
        self.max_points = max_points
        self.unsaved: dict[int, float] = {}
        self.rewritten = rewritten

    def add(self, step: int, value: float) -> None:
        """One more report. A step that comes again replaces; one that lies before the last belongs to no curve."""
        if self.latest is not None and step < self.latest[0]:
            return
        self.latest = (step, value)
        newest = next(reversed(self.points), None)
        if newest is not None and newest != step and step - newest < self.stride:
            return
        self.points[step] = self.unsaved[step] = value
        if len(self.points) > self.max_points:
            self._thin()

    def restore(self, points: list[tuple[int, float]]) -> None:
        """What the database had, in order of steps."""
        for step, value in points:
            self.add(step, value)
        self.unsaved, self.rewritten = {}, False

    def all_points(self) -> list[tuple[int, float]]:
        """Kept points in order, the latest report last."""
        points = list(self.points.items())
        if self.latest is not None and (not points or points[-1][0] != self.latest[0]):
            points.append(self.latest)
        return points

    def take_unsaved(self) -> tuple[bool, dict[int, float]]:
        """Whether to drop what is stored, and what to store; afterwards nothing is unsaved."""
        taken = (self.rewritten, self.unsaved)
        self.unsaved, self.rewritten = {}, False
        return taken

    def mark_unsaved(self) -> None:
        """The database does not have what `take_unsaved` gave: write all of it again."""
        self.unsaved, self.rewritten = dict(self.points), True

    def _thin(self) -> None:
        steps = list(self.points)
        self.points = {step: self.points[step] for step in steps[::2]}
        self.stride = max(self.stride * 2, (steps[-1] - steps[0]) // self.max_points + 1)
        self.mark_unsaved()


class RecentChart:
    """Samples of the last minutes: one time, one value per line."""

    def __init__(self, lines: tuple[str, ...], unit: str) -> None:
        self.lines = lines
        self.unit = unit
        self.samples: deque[tuple[float, tuple[float | None, ...]]] = deque()

    def add(self, at_s: float, values: dict[str, float | None]) -> None:
        """Append a sample and forget those older than the span."""
        self.samples.append((at_s, tuple(values.get(line) for line in self.lines)))
        while self.samples and self.samples[0][0] < at_s - CHART_SPAN_S:
            self.samples.popleft()

    def columns(self) -> tuple[tuple[float, ...], dict[str, tuple[float | None, ...]]]:
        """x, and the values of each line."""
        x = tuple(at_s for at_s, _ in self.samples)
        return x, {line: tuple(values[i] for _, values in self.samples) for i, line in enumerate(self.lines)}
