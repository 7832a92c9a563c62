"""The gating function: scores for every grid line, and the best living experts for each row.

Source: Ryabinin & Gusev, 2020, section 3.1: an expert's score is the sum of one score per grid dimension.
"""

# R rows in the batch, K chosen per row, L grid lines (sum of the grid's sizes)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from learning_at_home.client.checks import check_rows
from learning_at_home.client.remote_expert import RemoteExpert
from learning_at_home.client.selection import best_cells, cell_scores
from learning_at_home.errors import ConfigError, NonFiniteTensor, NotEnoughExperts, SpecMismatch
from learning_at_home.expert_uid import ExpertUid, Grid
from learning_at_home.project import LayerSpec
from learning_at_home.tensors.finite import is_finite
from learning_at_home.tensors.frames import DTYPES

if TYPE_CHECKING:
    from learning_at_home.client.swarm import Swarm


MIN_DEVIATION = 1e-2  # of the noise: what a row's noise may shrink to, so that it never decides for certain
LOOK_TIMEOUT_S = 5.0  # for the best experts of a layer that is too large to be known whole


@dataclass(frozen=True, slots=True, eq=False)
class Noise:
    """What noise was added to a batch's scores: `clean_RL` without it, `deviation_RL` its standard deviation."""

    clean_RL: Tensor
    deviation_RL: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """The experts that a gate chose for R rows, K each, the best first.

    `scores` [R, K] are differentiable, `cells` [R, K] flat indices of the grid of layer `prefix`.
    """

    prefix: str
    scores: Tensor
    cells: Tensor
    swarm: Swarm

    @property
    def uids(self) -> list[list[ExpertUid]]:
        """One list per row, the best first."""
        grid = self.swarm.project.layer(self.prefix).cells
        uid_of = {cell: grid.uid(self.prefix, cell) for cell in set(self.cells.flatten().tolist())}
        return [[uid_of[cell] for cell in row] for row in self.cells.tolist()]

    @property
    def experts(self) -> list[list[RemoteExpert]]:
        """The same as callable experts. One call per row and expert is slow: DMoE sends one message per node."""
        return [[self.swarm.expert(uid) for uid in row] for row in self.uids]


def gated_input(layer: LayerSpec, path: str | None) -> int:
    """Which of the layer's inputs a gate scores: that of the path, or the first floating one whose rows are vectors or
    sequences of vectors. Raises ConfigError when there is none."""
    for number, leaf in enumerate(layer.inputs):
        fits = leaf.is_float and len(leaf.shape) in (1, 2)
        if leaf.path == path and not fits:
            raise ConfigError(
                f"layer {layer.prefix}: gate_on={path!r} is {leaf}; a gate takes floats, [*, size] or [*, length, size]"
            )
        if leaf.path == path or (path is None and fits):
            return number
    names = ", ".join(leaf.path for leaf in layer.inputs)
    if path is None:
        raise ConfigError(f"layer {layer.prefix}: a gate can score none of its inputs, {names}; call its experts alone")
    raise ConfigError(f"layer {layer.prefix}: gate_on={path!r} is none of its inputs, {names}")


class GatingFunction(torch.nn.Module):
    """`GatingFunction(64, (4, 4), k_best=4, swarm=swarm, layer="ffn0")(x)` chooses the experts for x [rows, 64].

    Its only parameters are those of one linear map from `in_features` to one score per grid line, and of a second one
    when it is `noisy`. Without a swarm it can still score (`line_scores`); choosing needs to know who is alive. Raises
    ConfigError when k_best is below 1, jitter is not in [0, 1), or the grid is not the layer's.

    While training (`gate.train()`, the default), and not in `eval()`: `noisy` adds normal noise to every line's score,
    its standard deviation a softplus of that second map (Shazeer et al., 2017, eq. 4; theirs is per expert); `jitter`
    multiplies the gate's input, elementwise, by numbers drawn evenly from 1 - jitter to 1 + jitter (Fedus et al.,
    2021).
    """

    def __init__(
        self,
        in_features: int,
        grid: Sequence[int],
        *,
        k_best: int = 4,
        swarm: Swarm | None = None,
        layer: str | None = None,
        dtype: torch.dtype | None = None,
        noisy: bool = False,
        jitter: float = 0.0,
    ) -> None:
        super().__init__()
        self.grid = Grid(tuple(grid))
        self.in_features = in_features
        self.k_best = k_best
        if k_best < 1:
            raise ConfigError(f"k_best is {k_best}; at least one expert must be chosen")
        if not 0 <= jitter < 1:
            raise ConfigError(f"jitter is {jitter}; it must be at least 0 and below 1")
        self.jitter = jitter
        self.lines = torch.nn.Linear(in_features, sum(self.grid.shape), dtype=dtype)
        self.noise: torch.nn.Linear | None = None
        if noisy:
            self.noise = torch.nn.Linear(in_features, sum(self.grid.shape), bias=False, dtype=dtype)
            torch.nn.init.zeros_(self.noise.weight)  # as in the paper: equal noise everywhere at first
        self._swarm = swarm
        self._prefix = layer
        if (swarm is None) != (layer is None):
            raise ConfigError("a gate that chooses needs both swarm= and layer=")
        if swarm is not None and layer is not None and swarm.project.layer(layer).cells != self.grid:
            raise ConfigError(f"layer {layer} has grid {list(swarm.project.layer(layer).grid)}, not {list(grid)}")

    @classmethod
    def of_layer(
        cls,
        swarm: Swarm,
        layer: str,
        k_best: int = 4,
        *,
        noisy: bool = False,
        jitter: float = 0.0,
        gate_on: str | None = None,
    ) -> GatingFunction:
        """The gate that fits a layer of the project: its size, its grid, and its dtype where that has enough bits.

        `gate_on`: see DMoE. Raises UnknownLayer, or ConfigError when nothing can be gated on.
        """
        spec = swarm.project.layer(layer)
        dtype = DTYPES[spec.dtype] if spec.dtype in ("float32", "float64") else torch.float32
        return cls(
            spec.inputs[gated_input(spec, gate_on)].shape[-1],
            spec.grid,
            k_best=k_best,
            swarm=swarm,
            layer=layer,
            dtype=dtype,
            noisy=noisy,
            jitter=jitter,
        )

    def line_scores(self, x: Tensor) -> Tensor:
        """One score per grid line, all dimensions side by side: [R, L]. A row that is a sequence counts by its mean.

        Raises SpecMismatch, and NonFiniteTensor when the scores are: then the gate's own weights have diverged.
        """
        return self.noisy_line_scores(x)[0]

    def noisy_line_scores(self, x: Tensor) -> tuple[Tensor, Noise | None]:
        """`line_scores` [R, L], and the noise in them; None where none was added.

        Raises SpecMismatch, and NonFiniteTensor when the scores are.
        """
        if x.dim() not in (2, 3) or x.shape[-1] != self.in_features:
            raise SpecMismatch(f"the gate takes [*, {self.in_features}], not {list(x.shape)}")
        x = (x.mean(dim=1) if x.dim() == 3 else x).to(self.lines.weight.dtype)
        if self.jitter and self.training:
            x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
        lines_RL: Tensor = self.lines(x)
        noise = None
        if self.noise is not None and self.training:
            noise = Noise(lines_RL, MIN_DEVIATION + torch.nn.functional.softplus(self.noise(x)))
            lines_RL = lines_RL + torch.randn_like(lines_RL) * noise.deviation_RL
        if not is_finite(lines_RL.detach()):
            raise NonFiniteTensor("the gate's scores hold NaN or infinity: its weights have diverged")
        return lines_RL, noise

    def forward(self, x: Tensor) -> Chosen:
        """The k best living experts of every row; fewer when fewer live.

        Raises NotEnoughExperts when none does, and ConfigError when the gate was made without a swarm.
        """
        if self._swarm is None or self._prefix is None:
            raise ConfigError("this gate has no swarm: make it with swarm= and layer= to let it choose experts")
        spec = self._swarm.project.layer(self._prefix)
        if spec.schema is None:
            check_rows(f"layer {self._prefix}", spec, x)
        lines_RL = self.line_scores(x)
        living = self._swarm.living(self._prefix)
        living.look_for(lines_RL.detach(), self.k_best, self._swarm.calls.clock.monotonic_s() + LOOK_TIMEOUT_S)
        _, index = living.now()
        if not len(index):
            raise NotEnoughExperts(f"layer {self._prefix}: no expert is alive; swarm.wait_until_alive() waits for them")
        cells_RK = best_cells(lines_RL, index, self.k_best)
        return Chosen(self._prefix, cell_scores(lines_RL, self.grid.shape, cells_RK), cells_RK, self._swarm)

    def extra_repr(self) -> str:
        noise = f", jitter={self.jitter:g}" if self.jitter else ""
        return f"grid={list(self.grid.shape)}, k_best={self.k_best}{noise}"
