"""A plot of costs that grow with size, as SVG: both axes logarithmic, one line per series. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Protocol

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 220, 40, 50  # the names of the lines stand on the right
COLOURS = ("#0b6e99", "#c2410c", "#4d7c0f", "#7e22ce", "#525252")

Points = Sequence[tuple[float, float]]


class Axis(Protocol):
    """From values to pixels."""

    @property
    def ticks(self) -> list[float]: ...

    def place(self, value: float) -> float: ...


def frame(title: str, x_label: str, y_label: str, x_axis: Axis, y_axis: Axis) -> list[str]:
    """The parts of a picture in front of which the data is drawn; it lacks its end."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12" fill="#444">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="20" font-size="14" fill="#111">{escape(title)}</text>',
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 12}" text-anchor="end">{escape(x_label)}</text>',
        f'<text x="8" y="{TOP - 8}">{escape(y_label)}</text>',
    ]
    for value in x_axis.ticks:
        x = x_axis.place(value)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:g}</text>')
    for value in y_axis.ticks:
        y = y_axis.place(value)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    return parts


def log_log_plot(title: str, x_label: str, y_label: str, series: Mapping[str, Points]) -> str:
    """The picture. Every series has at least one point, and all numbers are positive."""
    points = [point for line in series.values() for point in line]
    x_axis = _Axis([x for x, _ in points], LEFT, WIDTH - RIGHT)
    y_axis = _Axis([y for _, y in points], HEIGHT - BOTTOM, TOP)
    parts = frame(title, x_label, y_label, x_axis, y_axis)
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [(x_axis.place(x), y_axis.place(y)) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        y_of_name = TOP + 18 * number
        parts.append(f'<text x="{WIDTH - RIGHT + 14}" y="{y_of_name}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Axis:
    """Powers of ten that enclose the values, from one pixel to another."""

    def __init__(self, values: Sequence[float], first_pixel: float, last_pixel: float) -> None:
        self._low = math.floor(math.log10(min(values)))
        self._high = max(self._low + 1, math.ceil(math.log10(max(values))))
        self._first_pixel = first_pixel
        self._last_pixel = last_pixel

    @property
    def ticks(self) -> list[float]:
        return [10.0**exponent for exponent in range(self._low, self._high + 1)]

    def place(self, value: float) -> float:
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return self._first_pixel + share * (self._last_pixel - self._first_pixel)
