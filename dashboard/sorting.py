"""The order of a table as its page's address says it: `?sort=rows_per_s` rising, `?sort=-rows_per_s` falling.

Pure. The headers are links, so that sorting works without a script; with one, `static/js/tables.js` does it in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Order:
    """By one column; `column` is None for the order in which the source gave the rows."""

    column: str | None = None
    falling: bool = False

    @classmethod
    def parse(cls, text: str | None, columns: Iterable[str]) -> Order:
        """A column that the table does not have is no error: an old link still opens the page."""
        name = (text or "").removeprefix("-")
        return cls(name, text is not None and text.startswith("-")) if name in set(columns) else cls()

    def link(self, column: str, falling_first: bool) -> str:
        """Where a click on a header leads: its natural direction, then the other one, then the source's own order."""
        if column != self.column:
            return f"?sort={'-' if falling_first else ''}{column}"
        if self.falling == falling_first:
            return f"?sort={'' if falling_first else '-'}{column}"
        return "?"

    def aria(self, column: str) -> str:
        """The value of aria-sort."""
        return "none" if column != self.column else "descending" if self.falling else "ascending"

    def apply(self, rows: Sequence[Row]) -> tuple[Row, ...]:
        """Sorted; what is not known comes last in both directions, equals keep their order."""
        if self.column is None:
            return tuple(rows)
        column = self.column
        known = [row for row in rows if getattr(row, column) is not None]
        unknown = [row for row in rows if getattr(row, column) is None]
        return (*sorted(known, key=lambda row: getattr(row, column), reverse=self.falling), *unknown)
