"""Names of experts: a layer's prefix and one index per grid dimension, `ffn0.3.17`.

Knows the grammar and the arithmetic of grids; knows nothing of networks.
Source: the expert grid of Ryabinin & Gusev, 2020.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from learning_at_home.errors import InvalidUid

PREFIX_RULE = "a small letter, then up to 31 small letters, digits, '-' or '_'"
_PREFIX = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_INDEX = re.compile(r"0|[1-9][0-9]{0,6}")
_SPAN = re.compile(r"\[(0|[1-9][0-9]{0,6}):(0|[1-9][0-9]{0,6})\]")
MAX_DIMENSIONS = 8  # the gate has one score vector per dimension; more than a few only makes cells rarer
MAX_CELLS = 1 << 22  # 4 million cells keep a layer's liveness mask at 4 MB


def check_prefix(prefix: str) -> str:
    """The prefix itself. Raises InvalidUid with the rule when it breaks it."""
    if not _PREFIX.fullmatch(prefix):
        raise InvalidUid(f"{prefix[:64]!r} is not a layer prefix: {PREFIX_RULE}")
    return prefix


@dataclass(frozen=True, slots=True, order=True)
class ExpertUid:
    """One grid cell of one layer: the layer's `prefix`, and `indices`, one per dimension of its grid."""

    prefix: str
    indices: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> ExpertUid:
        """`ffn0.3.17` -> ExpertUid("ffn0", (3, 17)). Raises InvalidUid."""
        prefix, *parts = text[:256].split(".")
        if not parts or len(parts) > MAX_DIMENSIONS or not all(_INDEX.fullmatch(part) for part in parts):
            raise InvalidUid(
                f"{text[:64]!r} is not an expert uid such as 'ffn0.3.17': a prefix, then one index per dimension"
            )
        return cls(check_prefix(prefix), tuple(map(int, parts)))

    def __str__(self) -> str:
        return ".".join([self.prefix, *map(str, self.indices)])


@dataclass(frozen=True, slots=True)
class Grid:
    """The cells of a layer: `shape` has the number of lines of each dimension. A cell is its row-major flat index.

    Raises InvalidUid when there are too many dimensions or cells, or none.
    """

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.shape) <= MAX_DIMENSIONS or any(size < 1 for size in self.shape):
            raise InvalidUid(
                f"grid {list(self.shape)} needs 1 to {MAX_DIMENSIONS} dimensions of at least one line each"
            )
        if math.prod(self.shape) > MAX_CELLS:
            raise InvalidUid(f"grid {list(self.shape)} has over {MAX_CELLS:,} cells")

    @property
    def num_cells(self) -> int:
        """As many experts as the layer has when all are hosted."""
        return math.prod(self.shape)

    def cell(self, uid: ExpertUid) -> int:
        """Flat index of a uid. Raises InvalidUid when it lies outside."""
        if len(uid.indices) != len(self.shape) or any(i >= n for i, n in zip(uid.indices, self.shape, strict=True)):
            raise InvalidUid(f"{uid} lies outside the grid {'x'.join(map(str, self.shape))} of layer {uid.prefix}")
        flat = 0
        for index, size in zip(uid.indices, self.shape, strict=True):
            flat = flat * size + index
        return flat

    def uid(self, prefix: str, cell: int) -> ExpertUid:
        """The uid of a flat index. Raises InvalidUid when it lies outside."""
        if not 0 <= cell < self.num_cells:
            raise InvalidUid(f"cell {cell} lies outside the grid {'x'.join(map(str, self.shape))} of layer {prefix}")
        indices = []
        for size in reversed(self.shape):
            cell, index = divmod(cell, size)
            indices.append(index)
        return ExpertUid(prefix, tuple(reversed(indices)))

    def uids(self, prefix: str) -> Iterator[ExpertUid]:
        """Every cell, in flat order."""
        for indices in itertools.product(*map(range, self.shape)):
            yield ExpertUid(prefix, indices)


@dataclass(frozen=True, slots=True)
class UidPattern:
    """A block of cells: `ffn0.[0:4].3` is lines 0 to 3 of dimension 0 at index 3 of dimension 1 (end excluded)."""

    prefix: str
    spans: tuple[range, ...]

    @classmethod
    def parse(cls, text: str) -> UidPattern:
        """Raises InvalidUid with an example when the text is no pattern or names no cell."""
        prefix, *parts = text[:512].split(".")
        spans: list[range] = []
        for part in parts:
            if match := _SPAN.fullmatch(part):
                spans.append(range(int(match[1]), int(match[2])))
            elif _INDEX.fullmatch(part):
                spans.append(range(int(part), int(part) + 1))
            else:
                example = "is not a pattern such as 'ffn0.[0:4].[0:4]'"
                raise InvalidUid(f"{text[:64]!r} {example}: {part[:32]!r} is neither index nor [first:end]")
        if not spans or len(spans) > MAX_DIMENSIONS or not all(spans):
            raise InvalidUid(f"{text[:64]!r} names no expert: use a pattern such as 'ffn0.[0:4].[0:4]', end excluded")
        return cls(check_prefix(prefix), tuple(spans))

    def uids(self, grid: Grid) -> list[ExpertUid]:
        """The cells of the block, in flat order. Raises InvalidUid when the block leaves the grid."""
        corner = ExpertUid(self.prefix, tuple(span[-1] for span in self.spans))
        grid.cell(corner)
        return [ExpertUid(self.prefix, indices) for indices in itertools.product(*self.spans)]
