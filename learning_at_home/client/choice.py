"""Which experts the rows of one batch go to: the gate's scores, and all that a layer's options make of them.

Tensor code without sockets or clocks; who is alive comes with each question, since it may change within a round.
Formulas: docs/layer.md.
"""

# R rows in the batch, K chosen per row, L grid lines, N living cells, A asked per row so far

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from learning_at_home.client.quorum import Rows
from learning_at_home.client.selection import CellIndex, all_scores, best_cells, best_with_room, next_best_cells
from learning_at_home.directory.directory import LayerView

Overflow = Literal["next_best", "pass"]  # where rows go for which their expert has no room
OfCells = Callable[[LayerView, CellIndex], Tensor]  # one number per cell of the index: [N]


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """A batch's scores `lines_RL`, detached, on the CPU, float32 or float64, and what besides them decides.

    `penalty` is subtracted from the scores. Cells on the lines `dropped_L` are taken where no other is left. `room`:
    how many rows each cell takes at most (for k_best=1); the others go where `overflow` says.
    """

    lines_RL: Tensor
    k_best: int
    penalty: OfCells | None = None
    dropped_L: Tensor | None = None
    room: OfCells | None = None
    overflow: Overflow = "next_best"

    def candidates(self, index: CellIndex) -> CellIndex:
        """The cells that are not left out; all of them when too few would stay."""
        if self.dropped_L is None:
            return index
        kept = index.without_lines(self.dropped_L)
        return kept if len(kept) >= min(self.k_best, len(index)) else index

    def best(self, view: LayerView, index: CellIndex) -> Tensor:
        """The min(k_best, N) cells per row, the best first: int64 [R, K]; -1 where the row passes through."""
        index = self.candidates(index)
        penalty_N = self.penalty(view, index) if self.penalty else None
        if self.room is None or not len(index):
            return best_cells(self.lines_RL, index, self.k_best, penalty_N)
        scores_RN = all_scores(self.lines_RL, index).T
        if penalty_N is not None:
            scores_RN = scores_RN - penalty_N.to(scores_RN)
        max_turns = 1 if self.overflow == "pass" else len(index)
        place_R = best_with_room(scores_RN.log_softmax(dim=1), self.room(view, index), max_turns)
        return torch.where(place_R >= 0, index.cells_N[place_R], -1).unsqueeze(1)

    def next_best(self, view: LayerView, index: CellIndex, rows: Rows, asked_rA: Tensor) -> Tensor:
        """For each of these rows the best cell that was not asked for it, whether it has room or not: [r]; -1: none."""
        lines_rL = self.lines_RL[torch.from_numpy(rows)]
        kept = self.candidates(index)
        cells_r = next_best_cells(lines_rL, kept, asked_rA, self.penalty(view, kept) if self.penalty else None)
        if len(kept) == len(index) or bool((cells_r >= 0).all()):
            return cells_r
        others_r = next_best_cells(lines_rL, index, asked_rA, self.penalty(view, index) if self.penalty else None)
        return torch.where(cells_r >= 0, cells_r, others_r)
