"""A mixture of one expert per row, after the Switch Transformer, over the same calls as DMoE.

Source: Fedus, Zoph & Shazeer, 2021 ("Switch Transformers"), section 2; dropout of grid lines as in hivemind. Formulas:
docs/layer.md.
"""

# R rows in the batch, S slots per row (one), L grid lines, N living cells

from __future__ import annotations

import math
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from learning_at_home.client.choice import Choice, Overflow
from learning_at_home.client.compression import Compression
from learning_at_home.client.dmoe import DMoE, Use
from learning_at_home.client.mixture import probabilities, switch_loss
from learning_at_home.client.rounds import OnMissing
from learning_at_home.client.selection import CellIndex
from learning_at_home.directory.directory import LayerView
from learning_at_home.errors import ConfigError

if TYPE_CHECKING:
    from learning_at_home.client.swarm import Swarm


class SwitchDMoE(DMoE):
    """`SwitchDMoE(swarm, layer="ffn0")(x)`: every row goes to its best living expert only, weighed by its probability.

    y = x + p (E(x) - x), p the softmax over all living experts at the one that answered: where E holds a residual
    connection, as `ffn` does, this is the Switch layer with its residual. Add `layer.balance_loss()` (0.01 of it) to
    the loss, or soon all rows go to one expert.

    While training, and not in `eval()`: `jitter` of the gate's input, see GatingFunction. An expert takes at most
    `capacity_factor` times its share of the batch's rows (None: any number); the share is smaller where the hosts'
    answers tell of a longer queue. Rows over it go to the "next_best" living expert with room, or "pass" through
    unchanged, as `overflow` says (see `passed`). `grid_dropout`: the probability by which each line of the grid is left
    out of a batch's choice. The other settings are DMoE's. Raises what DMoE raises, and ConfigError for a setting out
    of its range.
    """

    def __init__(
        self,
        swarm: Swarm,
        layer: str,
        *,
        jitter: float = 0.01,
        capacity_factor: float | None = 1.25,
        overflow: Overflow = "next_best",
        grid_dropout: float = 0.0,
        deadline_s: float | None = None,
        in_features: int | None = None,
        compression: Compression | str | tuple[str, str] = "none",
        on_missing: OnMissing = "raise",
        latency_weight: float = 0.0,
        circuit_breaker: bool = True,
        train_experts: bool | None = None,
        gate_on: str | None = None,
    ) -> None:
        super().__init__(
            swarm,
            layer,
            1,
            k_min=1,
            deadline_s=deadline_s,
            in_features=in_features,
            compression=compression,
            on_missing=on_missing,
            latency_weight=latency_weight,
            circuit_breaker=circuit_breaker,
            jitter=jitter,
            train_experts=train_experts,
            gate_on=gate_on,
        )
        self._check_passes("SwitchDMoE")
        name = f"layer {layer}"
        if capacity_factor is not None and not 0 < capacity_factor < math.inf:
            raise ConfigError(f"{name}: capacity_factor is {capacity_factor}; it must be positive, or None")
        if overflow not in get_args(Overflow):
            raise ConfigError(f"{name}: overflow={overflow!r}; it is one of {', '.join(get_args(Overflow))}")
        if not 0 <= grid_dropout < 1:
            raise ConfigError(f"{name}: grid_dropout is {grid_dropout}; it must be at least 0 and below 1")
        self.capacity_factor = capacity_factor
        self.overflow: Overflow = overflow
        self.grid_dropout = grid_dropout
        self._may_pass = True

    def extra_repr(self) -> str:
        capacity = f"capacity_factor={self.capacity_factor}, overflow={self.overflow!r}"
        return f"{super().extra_repr()}, {capacity}, grid_dropout={self.grid_dropout:g}"

    def _choice(self, lines_RL: Tensor) -> Choice:
        penalty = self._penalty if self.latency_weight else None
        if not self.training:
            return Choice(lines_RL, 1, penalty)
        dropped_L = torch.rand(lines_RL.shape[1]) < self.grid_dropout if self.grid_dropout else None
        factor, room = self.capacity_factor, None
        if factor is not None:
            most = factor * len(lines_RL)

            def room(view: LayerView, index: CellIndex) -> Tensor:
                return self._paces.capacity(view, index, most)

        return Choice(lines_RL, 1, penalty, dropped_L, room, self.overflow)

    def _weights(
        self, lines_RL: Tensor, cells_RS: Tensor, passed_R: Tensor | None, candidates: CellIndex
    ) -> tuple[Tensor, Tensor | None]:
        weights_RS = probabilities(lines_RL, candidates, cells_RS)
        return weights_RS, 1.0 - weights_RS.sum(dim=1)

    def _balance_loss(self, use: Use) -> Tensor:
        """The Switch loss: 1 when rows and probability are spread evenly over the living experts, N at worst."""
        return switch_loss(use.lines_RL, use.candidates)
