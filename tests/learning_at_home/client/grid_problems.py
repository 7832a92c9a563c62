"""Grids with dead cells and a gate's scores, for property tests, and the choice without any trick."""

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor


@st.composite
def problems(draw: st.DrawFn, max_rows: int = 4) -> tuple[tuple[int, ...], Tensor, list[int], int]:
    """A grid, the gate's scores, the living cells, and k. Few distinct scores, so that ties are common."""
    grid = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    num_cells = torch.Size(grid).numel()
    living = sorted(draw(st.sets(st.integers(0, num_cells - 1), min_size=1)))
    num_rows = draw(st.integers(1, max_rows))
    scores = draw(st.lists(st.integers(-3, 3), min_size=num_rows * sum(grid), max_size=num_rows * sum(grid)))
    return grid, torch.tensor(scores, dtype=torch.float64).view(num_rows, -1), living, draw(st.integers(1, 8))


def score(lines: Tensor, grid: tuple[int, ...], cell: int) -> float:
    """The sum of one score per dimension, without any trick."""
    total, offset, indices = 0.0, 0, []
    for size in reversed(grid):
        cell, index = divmod(cell, size)
        indices.append(index)
    for size, index in zip(grid, reversed(indices), strict=True):
        total += float(lines[offset + index])
        offset += size
    return total


def brute_force(
    lines: Tensor, grid: tuple[int, ...], living: Sequence[int], k: int, penalty: dict[int, float] | None = None
) -> list[int]:
    """The k best living cells, the best first; of equal ones the lower."""

    def rank(cell: int) -> tuple[float, int]:
        return (penalty or {}).get(cell, 0.0) - score(lines, grid, cell), cell

    return sorted(living, key=rank)[:k]
