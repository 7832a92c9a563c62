"""How the tools show tables and figures: plain text, aligned, no colours. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def aligned(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table's lines; columns are as wide as their widest cell."""
    lines = [tuple(heads), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def duration(seconds: float) -> str:
    """As a person would say it: "4 s", "12 min", "3.5 h"; below a second in ms."""
    if abs(seconds) < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if abs(seconds) < 120:
        return f"{seconds:.1f} s" if abs(seconds) < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if abs(seconds) < 7_200 else f"{seconds / 3600:.1f} h"


def counted(number: int, noun: str) -> str:
    """ "1 peer", "2 peers"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(num_bytes: int) -> str:
    """In the unit that fits."""
    if num_bytes < 1_000:
        return f"{num_bytes} B"
    for unit, factor in (("kB", 1e3), ("MB", 1e6)):
        if num_bytes < 1_000 * factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes / 1e9:.1f} GB"
