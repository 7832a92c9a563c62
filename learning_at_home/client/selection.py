"""Which living cells have the best scores: exact, for a whole batch at once.

A cell's score is the sum of one score per grid dimension (product keys), so the gate's output for a row is one score
per grid line, all dimensions side by side: `lines_RL`. Pure tensor code; knows neither experts nor their hosts.
Source: Ryabinin & Gusev, 2020, section 3.1; product keys: Lample et al., 2019. Theirs is a beam search, ours is
exact.
"""

# R rows in the batch, L grid lines (sum of the grid's sizes), D grid dimensions, N living cells, K chosen per row,
# A asked per row so far, G stretches of STRETCH neighbouring cells, C candidates per row

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

# 4 MiB of float32: rows are taken in blocks, so that a grid of a million cells fits in memory
SCORES_AT_ONCE = 1 << 20
STRETCH = 32  # cells of which only the best is compared at first: about the root of N / K for 4,096 cells and 4 chosen


@dataclass(frozen=True, slots=True, eq=False)
class CellIndex:
    """Cells and their lines: `cells_N` flat indices in ascending order, `lines_of_ND` columns of `lines_RL`."""

    grid: tuple[int, ...]
    cells_N: Tensor
    lines_of_ND: Tensor

    @classmethod
    def of(cls, grid: Sequence[int], cells: Sequence[int]) -> CellIndex:
        """The index of some cells of a grid, given in ascending order."""
        cells_N = torch.tensor(cells, dtype=torch.int64)
        return cls(tuple(grid), cells_N, lines_of(tuple(grid), cells_N).T.contiguous())

    def __len__(self) -> int:
        return self.cells_N.numel()

    def without_lines(self, dropped_L: Tensor) -> CellIndex:
        """The cells that lie on none of these grid lines (bool, one per column of `lines_RL`)."""
        kept_N = ~dropped_L[self.lines_of_ND].any(dim=1)
        return CellIndex(self.grid, self.cells_N[kept_N], self.lines_of_ND[kept_N])

    def positions(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Where these cells stand in the index, and whether they do: int64 and bool, of the shape of `cells`."""
        position = torch.searchsorted(self.cells_N, cells).clamp_max(max(0, len(self) - 1))
        if not len(self):
            return position, torch.zeros_like(cells, dtype=torch.bool)
        return position, self.cells_N[position] == cells


def lines_of(grid: tuple[int, ...], cells: Tensor) -> Tensor:
    """The column of `lines_RL` for every dimension of every cell: int64 [len(grid), *cells.shape]."""
    steps, sizes, offsets = _of_dimensions(grid, cells.dim(), cells.device)
    return torch.div(cells, steps, rounding_mode="floor").remainder_(sizes).add_(offsets)


@functools.lru_cache(maxsize=256)
def _of_dimensions(grid: tuple[int, ...], dims: int, device: torch.device) -> Tensor:
    """Of every dimension: how far apart two neighbours along it stand, its size, and its first column of `lines_RL`.
    int64 [3, len(grid), 1, ...], to be used with cells of so many dims."""
    steps = [math.prod(grid[dimension + 1 :]) for dimension in range(len(grid))]
    offsets = [sum(grid[:dimension]) for dimension in range(len(grid))]
    return torch.tensor([steps, grid, offsets], device=device).view(3, len(grid), *[1] * dims)


def cell_scores(lines_RL: Tensor, grid: tuple[int, ...], cells_RK: Tensor) -> Tensor:
    """The scores [R, K] of given cells, differentiable with respect to `lines_RL`."""
    first, *others = lines_of(grid, cells_RK).to(lines_RL.device)
    scores_RK = lines_RL.gather(1, first)
    for columns_RK in others:
        scores_RK = scores_RK + lines_RL.gather(1, columns_RK)
    return scores_RK


def all_scores(lines_RL: Tensor, index: CellIndex) -> Tensor:
    """The scores [N, R] of every cell of the index, added up in the same order as `cell_scores` does.

    A cell's row is the sum of some lines' rows: what an embedding bag computes in one pass, without a tensor per term.
    """
    return embedding_bag(index.lines_of_ND.to(lines_RL.device), lines_RL.T.contiguous(), mode="sum")


@torch.no_grad()
def best_cells(lines_RL: Tensor, index: CellIndex, k: int, penalty_N: Tensor | None = None) -> Tensor:
    """The min(k, N) best cells per row, the best first, int64 [R, K]; of equal scores the lower cell wins.

    `penalty_N`, one finite number per cell, is subtracted from every row's scores.
    """
    k = min(k, len(index))
    if k == 0:
        return lines_RL.new_zeros((len(lines_RL), 0), dtype=torch.int64)
    block = max(1, SCORES_AT_ONCE // len(index))
    best = [_best_positions(_penalised(rows, index, penalty_N), k) for rows in torch.split(lines_RL, block)]
    best_RK = best[0] if len(best) == 1 else torch.cat(best)
    return index.cells_N.to(best_RK.device)[best_RK]


def _penalised(lines_RL: Tensor, index: CellIndex, penalty_N: Tensor | None) -> Tensor:
    scores_NR = all_scores(lines_RL, index)
    return scores_NR if penalty_N is None else scores_NR - penalty_N.to(scores_NR).unsqueeze(1)


def _best_positions(scores_NR: Tensor, k: int) -> Tensor:
    """The k best rows of every column, the best first; of equal ones the first: [R, K].

    They lie in those k stretches whose best are the best: a cell of any other stretch has k before it, one in each.
    Which stretch is before another of equal best is decided as between cells, by its place.
    """
    num_cells = len(scores_NR)
    if num_cells <= k * STRETCH:
        return _best_columns(scores_NR.T, k)
    num_whole = num_cells // STRETCH
    best_of_GR = scores_NR[: num_whole * STRETCH].unflatten(0, (num_whole, STRETCH)).amax(dim=1)
    if rest := num_cells % STRETCH:
        best_of_GR = torch.cat([best_of_GR, scores_NR[-rest:].amax(dim=0, keepdim=True)])
    stretches_RK = _best_columns(best_of_GR.T.contiguous(), k).sort(dim=1).values
    within = torch.arange(STRETCH, device=scores_NR.device)
    position_RC = (stretches_RK.unsqueeze(2) * STRETCH + within).flatten(1)
    beyond_RC = position_RC >= num_cells  # of the last stretch, which may be shorter
    position_RC.clamp_max_(num_cells - 1)
    candidates_RC = scores_NR.T.gather(1, position_RC).masked_fill_(beyond_RC, float("-inf"))
    return position_RC.gather(1, _best_columns(candidates_RC, k))


def _best_columns(scores_RN: Tensor, k: int) -> Tensor:
    """The k largest columns per row; topk leaves open which of equal ones it takes, so the doubtful rows are sorted.

    Few columns are sorted anyhow: in the time of topk alone, and among many threads each operation costs a wait.
    """
    if scores_RN.shape[1] <= STRETCH:
        return scores_RN.sort(dim=1, descending=True, stable=True).indices[:, :k].contiguous()
    wanted = min(k + 1, scores_RN.shape[1])
    values_RW, columns_RW = scores_RN.topk(wanted, dim=1, sorted=True)
    columns_RK = _in_order(values_RW[:, :k], columns_RW[:, :k])
    if wanted > k:
        tied = (values_RW[:, k] == values_RW[:, k - 1]).nonzero().squeeze(1)
        if tied.numel():
            columns_RK[tied] = scores_RN[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return columns_RK


def _in_order(values_RK: Tensor, columns_RK: Tensor) -> Tensor:
    """The columns by falling value, then by rising column."""
    columns_RK, by_column = columns_RK.sort(dim=1)
    order = values_RK.gather(1, by_column).sort(dim=1, descending=True, stable=True).indices
    return columns_RK.gather(1, order)


@torch.no_grad()
def next_best_cells(lines_RL: Tensor, index: CellIndex, asked_RA: Tensor, penalty_N: Tensor | None = None) -> Tensor:
    """The best cell of the index per row that is not in `asked_RA` (-1: nothing), int64 [R]; -1 where none is left."""
    if not len(index):
        return torch.full((len(lines_RL),), -1, dtype=torch.int64)
    block = max(1, SCORES_AT_ONCE // len(index))
    best = [
        _best_unasked(_penalised(lines, index, penalty_N).T, index, asked)
        for lines, asked in zip(torch.split(lines_RL, block), torch.split(asked_RA, block), strict=True)
    ]
    return torch.cat(best)


def _best_unasked(scores_RN: Tensor, index: CellIndex, asked_RA: Tensor) -> Tensor:
    position_RA, known_RA = index.positions(asked_RA)
    row_RA = torch.arange(len(scores_RN)).unsqueeze(1).expand_as(asked_RA)
    scores_RN[row_RA[known_RA], position_RA[known_RA]] = float("-inf")
    # numpy's argmax takes the first of equal ones, as best_cells does; torch leaves it open
    column_R = torch.from_numpy(scores_RN.numpy().argmax(axis=1))
    found_R = scores_RN.gather(1, column_R.unsqueeze(1)).squeeze(1) > float("-inf")
    return torch.where(found_R, index.cells_N[column_R], -1)


@torch.no_grad()
def best_with_room(scores_RN: Tensor, room_N: Tensor, max_turns: int) -> Tensor:
    """One cell per row, by its place in the index, so that cell n gets at most `room_N[n]` rows: int64 [R], -1: none.

    In turns: every row that has none asks for its best cell with room left; a cell that more rows ask for than it has
    room takes those that score it highest (of equal ones the first), and the others ask again.
    Source: capacity of Fedus et al., 2021, section 2.2, and the priority of Riquelme et al., 2021 (V-MoE), section 4.1.
    """
    given_R = torch.full((len(scores_RN),), -1, dtype=torch.int64)
    room_N = room_N.clone()
    waiting = torch.arange(len(scores_RN))
    for _ in range(max_turns):
        if not len(waiting) or not bool((room_N > 0).any()):
            break
        open_RN = scores_RN[waiting].masked_fill(room_N <= 0, float("-inf"))
        wanted = torch.from_numpy(open_RN.numpy().argmax(axis=1))  # the first of equal ones
        by_score = open_RN.gather(1, wanted.unsqueeze(1)).squeeze(1).argsort(descending=True, stable=True)
        order = by_score[wanted[by_score].argsort(stable=True)]  # by cell, in each the highest first
        cells, counts = torch.unique_consecutive(wanted[order], return_counts=True)
        first = (counts.cumsum(0) - counts).repeat_interleave(counts)
        taken = order[torch.arange(len(order)) - first < room_N[wanted[order]]]
        given_R[waiting[taken]] = wanted[taken]
        room_N[cells] -= torch.minimum(counts, room_N[cells])
        left = torch.ones(len(waiting), dtype=torch.bool)
        left[taken] = False
        waiting = waiting[left]
    return given_R
