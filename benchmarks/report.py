"""A benchmark's figures: a table for people and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.rows import Row

HEADINGS = ("row", "ours", "reference", "its value", "ratio", "bar", "holds", "spread")
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def table(rows: Sequence[Row]) -> str:
    """Columns of text; below them why a figure is missing or what it leaves out."""
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    whys = [f"{row.row} ({row.reference}): {row.why}" for row in rows if row.why]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *([""] if whys else []), *whys])


def markdown(rows: Sequence[Row]) -> str:
    """The table as it stands in the docs."""
    lines = [HEADINGS, tuple("---" for _ in HEADINGS), *(_cells(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_json(path: Path, benchmark: str, rows: Sequence[Row], seconds: float) -> None:
    """The file that `docs/performance.md` is written from."""
    document = {
        "benchmark": benchmark,
        "machine": machine(),
        "seconds": round(seconds, 1),
        "rows": [row.to_json() for row in rows],
    }
    path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def read_json(path: Path) -> list[Row]:
    """The rows of a file that `write_json` wrote."""
    return [Row.from_json(row) for row in json.loads(path.read_text("utf-8"))["rows"]]


def shown(value: float | None, unit: str) -> str:
    """`0.58 ms`, `5,210 /s`."""
    if value is None:
        return "-"
    if unit == "s":
        return _scaled(value, _SECONDS)
    if unit == "bytes":
        return _scaled(value, _BYTES)
    return f"{value:,.4g} {unit}" if value < 1_000 else f"{value:,.0f} {unit}"


def _scaled(value: float, units: Sequence[tuple[float, str]]) -> str:
    factor, name = next((unit for unit in units if value >= unit[0]), units[-1])
    return f"{value / factor:.3g} {name}"


def _cells(row: Row) -> tuple[str, ...]:
    holds = {True: "yes", False: "NO", None: "-"}[row.holds]
    spread = f"{row.spread[0]:.3g} to {row.spread[1]:.3g}" if row.spread else "-"
    ratio = f"{row.ratio:.3g}" if row.ratio is not None else "-"
    values = shown(row.ours, row.unit), shown(row.reference_value, row.unit)
    return row.row, values[0], row.reference, values[1], ratio, f"{row.bar:g}", holds, spread
