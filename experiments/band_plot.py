"""A plot of figures that several runs gave, as SVG: per series the mean as a line, least to most as a band. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Points, frame

COLOURS = ("#0b6e99", "#c2410c", "#4d7c0f", "#7e22ce", "#525252", "#be185d", "#0f766e", "#a16207")
NUM_TICKS = 5


@dataclass(frozen=True, slots=True)
class Band:
    """What the runs of one series gave at one place."""

    x: float
    least: float
    mean: float
    most: float


def bands(runs: Sequence[Points]) -> list[Band]:
    """Over the runs' values at each x that all of them have, in ascending order."""
    by_x = [dict(run) for run in runs]
    shared = sorted(set(by_x[0]).intersection(*by_x[1:])) if by_x else []
    columns = [(x, [run[x] for run in by_x]) for x in shared]
    return [Band(x, min(values), statistics.mean(values), max(values)) for x, values in columns]


def band_plot(
    title: str, x_label: str, y_label: str, series: Mapping[str, Sequence[Points]], *, log_x: bool = False
) -> str:
    """The picture: `series` has each one's runs. At least one has points; with `log_x` all x are positive."""
    drawn = {name: found for name, runs in series.items() if (found := bands(runs))}
    every = [band for found in drawn.values() for band in found]
    x_axis = _Axis([band.x for band in every], LEFT, WIDTH - RIGHT, log=log_x)
    y_axis = _Axis([y for band in every for y in (band.least, band.most)], HEIGHT - BOTTOM, TOP)
    parts = frame(title, x_label, y_label, x_axis, y_axis)
    for number, (name, found) in enumerate(drawn.items()):
        colour = COLOURS[number % len(COLOURS)]
        upper = [(x_axis.place(band.x), y_axis.place(band.most)) for band in found]
        lower = [(x_axis.place(band.x), y_axis.place(band.least)) for band in reversed(found)]
        middle = [(x_axis.place(band.x), y_axis.place(band.mean)) for band in found]
        parts.append(f'<polygon points="{_path([*upper, *lower])}" fill="{colour}" fill-opacity="0.15"/>')
        parts.append(f'<polyline points="{_path(middle)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in middle]
        y_of_name = TOP + 18 * number + 4
        parts.append(f'<text x="{WIDTH - RIGHT + 14}" y="{y_of_name}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _path(points: Points) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


class _Axis:
    """Round numbers that enclose the values, from one pixel to another."""

    def __init__(self, values: Sequence[float], first_pixel: float, last_pixel: float, *, log: bool = False) -> None:
        self._log = log
        self._first_pixel = first_pixel
        self._last_pixel = last_pixel
        if log:
            self.ticks = sorted(set(values)) if len(set(values)) <= NUM_TICKS + 3 else _powers_of_ten(values)
            self._low, self._high = math.log(min(values)), math.log(max(values))
        else:
            self.ticks = _round_numbers(min(values), max(values))
            self._low, self._high = self.ticks[0], self.ticks[-1]

    def place(self, value: float) -> float:
        width = self._high - self._low
        share = (((math.log(value) if self._log else value) - self._low) / width) if width else 0.5
        return self._first_pixel + share * (self._last_pixel - self._first_pixel)


def _powers_of_ten(values: Sequence[float]) -> list[float]:
    first, last = math.ceil(math.log10(min(values))), math.floor(math.log10(max(values)))
    return [10.0**exponent for exponent in range(first, last + 1)]


def _round_numbers(low: float, high: float) -> list[float]:
    """In steps of 1, 2 or 5 times a power of ten, about NUM_TICKS of them."""
    raw = max(high - low, 1e-9) / NUM_TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if raw <= power * factor * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]
