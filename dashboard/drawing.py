"""What the server draws before any script runs: the grid as panels of cells, and charts and sparklines as SVG paths.

Pure geometry. `static/js/grid_layout.js` lays the same panels out on the canvas, so that nothing jumps when it takes
over.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dashboard.view import Cell, Layer

MAX_DRAWN_CELLS = 2_048  # some 200 KB of SVG; beyond it, a page without scripts has counts and the list of damage
WRAP_ABOVE = 24  # a 1-dimensional grid is one row up to here, then wrapped to about 5 : 2
ROOMY_COLUMNS, ROOMY_ROWS = 12, 8  # up to here a cell has room for words


@dataclass(frozen=True, slots=True)
class DrawnCell:
    """One cell at its row and column of the panel."""

    row: int
    column: int
    index: int  # flat, in the layer
    uid: str
    label: str  # the uid without its prefix: "3.17"
    cell: Cell


@dataclass(frozen=True, slots=True)
class Panel:
    """The last two dimensions of a grid, at fixed indices of the others (`caption`, "" where there are no others)."""

    caption: str
    rows: int
    columns: int
    cells: tuple[DrawnCell, ...]


def panel_shape(grid: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of one panel."""
    if len(grid) >= 2:
        return grid[-2], grid[-1]
    columns = grid[0] if grid[0] <= WRAP_ABOVE else math.ceil(math.sqrt(grid[0] * 2.5))
    return math.ceil(grid[0] / columns), columns


def is_roomy(grid: Sequence[int]) -> bool:
    """Whether cells are large enough to carry words."""
    rows, columns = panel_shape(grid)
    return rows <= ROOMY_ROWS and columns <= ROOMY_COLUMNS


def grid_panels(layer: Layer) -> tuple[Panel, ...]:
    """All cells of a layer: one panel for one or two dimensions, more for three and up."""
    rows, columns = panel_shape(layer.grid)
    per_panel = rows * columns if len(layer.grid) >= 2 else len(layer.cells)
    panels = []
    for number, leading in enumerate(itertools.product(*map(range, layer.grid[:-2]))):
        first = number * per_panel
        cells = tuple(
            _drawn(layer, first + offset, offset, leading, columns)
            for offset in range(per_panel)
            if first + offset < len(layer.cells)
        )
        caption = ".".join([layer.prefix, *map(str, leading)]) if leading else ""
        panels.append(Panel(caption, rows, columns, cells))
    return tuple(panels)


def brightness(cell: Cell) -> float:
    """Opacity of a serving cell: between 0.55 when idle and 1 when it is the busiest."""
    return 0.55 + 0.45 * min(1.0, max(0.0, cell.load)) if cell.health == "serving" else 1.0


def line_path(x: Sequence[float], y: Sequence[float | None], width: float, height: float, top: float) -> str:
    """The `d` of a line from x[0] at the left to x[-1] at the right, 0 at the bottom, `top` at the top. Gaps stay."""
    if not x or top <= 0:
        return ""
    span = (x[-1] - x[0]) or 1.0
    parts, pen_down = [], False
    for at, value in zip(x, y, strict=True):
        if value is None or not math.isfinite(value):
            pen_down = False
            continue
        left = (at - x[0]) / span * width
        up = height - min(1.0, max(0.0, value / top)) * height
        parts.append(f"{'L' if pen_down else 'M'}{left:.1f},{up:.1f}")
        pen_down = True
    return "".join(parts)


def chart_top(values: Sequence[float | None]) -> float:
    """A round number at or above every value: 1, 2, 2.5 or 5 times a power of ten."""
    highest = max((value for value in values if value is not None and math.isfinite(value)), default=0.0)
    if highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= highest)


def stacked(lines: Mapping[str, Sequence[float | None]]) -> dict[str, list[float | None]]:
    """Running sums, the last line lowest: what a chart of parts draws, so that equal parts do not hide each other."""
    sums: dict[str, list[float | None]] = {}
    below: list[float | None] = []
    for name in reversed(list(lines)):
        below = [
            value if under is None else under if value is None else value + under
            for value, under in zip(lines[name], below or [None] * len(lines[name]), strict=True)
        ]
        sums[name] = below
    return {name: sums[name] for name in lines}


def _drawn(layer: Layer, index: int, offset: int, leading: tuple[int, ...], columns: int) -> DrawnCell:
    row, column = divmod(offset, columns)
    label = ".".join(map(str, (*leading, row, column))) if len(layer.grid) >= 2 else str(index)
    return DrawnCell(row, column, index, f"{layer.prefix}.{label}", label, layer.cells[index])
