"""A DMoE layer in plain torch: the same gate, every expert in this process, rows grouped by expert.

One autograd Function around all experts, as in the layer of the SDK; backward steps each expert that got rows. Several
threads share the work either way: inside each product (torch's own threads), or each with an expert at a time.
"""

# R rows in the batch, K chosen per row, L grid lines

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from benchmarks.local_expert import LocalExpert
from benchmarks.projects import PREFIX
from learning_at_home.client.gating import GatingFunction
from learning_at_home.client.mixture import mix, mixture_weights
from learning_at_home.client.selection import CellIndex, best_cells, cell_scores
from learning_at_home.project import ProjectRecord

Group = tuple[int, Tensor]  # a cell, and the places of its rows in the flat [R * K]


class MapGroups(Protocol):
    """`map`, or a pool's."""

    def __call__(self, compute: Callable[[Group], Tensor], groups: Iterable[Group], /) -> Iterator[Tensor]: ...


class LocalMixture(nn.Module):
    """x [rows, hidden] to the mixture of each row's k best experts."""

    def __init__(
        self, project: ProjectRecord, k_best: int, map_groups: MapGroups = map, *, prefix: str = PREFIX
    ) -> None:
        """`map_groups`: the `map` of a pool computes several experts at once."""
        super().__init__()
        layer = project.layer(prefix)
        self.gate = GatingFunction(layer.hidden_size, layer.grid, k_best=k_best)
        self.experts = [LocalExpert(project, uid) for uid in layer.cells.uids(prefix)]
        self.map_groups = map_groups
        self._grid = layer.grid
        self._index = CellIndex.of(layer.grid, range(layer.cells.num_cells))

    def forward(self, x: Tensor) -> Tensor:
        lines_RL = self.gate.line_scores(x)
        cells_RK = best_cells(lines_RL.detach(), self._index, self.gate.k_best)
        answers_RKx: Tensor = _AllExperts.apply(x, cells_RK, self)  # type: ignore[no-untyped-call]
        scores_RK = cell_scores(lines_RL, self._grid, cells_RK)
        return mix(answers_RKx, mixture_weights(scores_RK, torch.ones_like(cells_RK, dtype=torch.bool)))


class _Saved(FunctionCtx):
    """What forward leaves for backward."""

    layer: LocalMixture
    groups: list[Group]
    k_best: int
    saved_tensors: tuple[Tensor, ...]


class _AllExperts(torch.autograd.Function):
    """x [R, hidden] to the answers of its experts [R, K, hidden]."""

    @staticmethod
    def forward(ctx: _Saved, x: Tensor, cells_RK: Tensor, layer: LocalMixture) -> Tensor:
        k_best = cells_RK.shape[1]
        ctx.layer, ctx.groups, ctx.k_best = layer, _grouped(cells_RK), k_best
        ctx.save_for_backward(x)
        flat = x.new_empty(cells_RK.numel(), x.shape[1])

        def compute(group: Group) -> Tensor:
            return layer.experts[group[0]].forward(x.index_select(0, group[1] // k_best))

        for (_, slots), answer in zip(ctx.groups, layer.map_groups(compute, ctx.groups), strict=True):
            flat.index_copy_(0, slots, answer)
        return flat.view(*cells_RK.shape, x.shape[1])

    @staticmethod
    def backward(ctx: _Saved, gradient_RKx: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        layer, k_best = ctx.layer, ctx.k_best
        flat = gradient_RKx.flatten(0, 1)

        def compute(group: Group) -> Tensor:
            cell, slots = group
            return layer.experts[cell].backward(x.index_select(0, slots // k_best), flat.index_select(0, slots))

        of_x = torch.zeros_like(x)
        for (_, slots), of_rows in zip(ctx.groups, layer.map_groups(compute, ctx.groups), strict=True):
            of_x.index_add_(0, slots // k_best, of_rows)
        return of_x, None, None


def _grouped(cells_RK: Tensor) -> list[Group]:
    """Each expert that has rows, with its places in the flat [R * K]."""
    order = torch.argsort(cells_RK.flatten(), stable=True)
    cells, counts = torch.unique_consecutive(cells_RK.flatten()[order], return_counts=True)
    return list(zip(cells.tolist(), torch.split(order, counts.tolist()), strict=True))
