"""The decentralized mixture of experts as one PyTorch layer.

One autograd Function fans out to all experts at once, forward and backward (one blocking Function per expert would
run them one after another); scores, softmax and sum are plain PyTorch around it, so that autograd makes the gate's
gradient exact. Source: Ryabinin & Gusev, NeurIPS 2020 ("Learning@home").
"""

# R rows in the batch, K chosen per row, S slots per row (the most answers that any row has), L grid lines

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from learning_at_home.client.checks import check_first_order, check_gradient, check_rows
from learning_at_home.client.compression import Compression, compression_of
from learning_at_home.client.dispatch import ForwardRound, Part, Terms, ask_backward, not_enough
from learning_at_home.client.fanout import CallContext
from learning_at_home.client.gating import GatingFunction
from learning_at_home.client.living import LivingExperts
from learning_at_home.client.mixture import importance_loss, mix, mixture_weights
from learning_at_home.client.remote_expert import training_anchor
from learning_at_home.client.selection import best_cells, cell_scores
from learning_at_home.client.traced_round import TracedRound
from learning_at_home.client.tracing import section
from learning_at_home.errors import ConfigError, SpecMismatch, UsageError
from learning_at_home.project import LayerSpec

if TYPE_CHECKING:
    from learning_at_home.client.swarm import Swarm


class DMoE(torch.nn.Module):
    """`DMoE(swarm, layer="ffn0", k_best=4)(x)`: x [..., *row shape] of the layer's dtype to the same shape, any device.

    Every row goes to its `k_best` best living experts; it needs answers of `k_min`, and once it has them the others
    have `grace_s` more. When too few answer, the next best living ones are asked, within `deadline_s`. The defaults
    of k_min, deadline_s and grace_s are the project's. `compression`: "float16", "bfloat16" or "int8" for what is sent
    and what comes back, or a pair of two; what it loses: docs/performance.md. Batches over one request's limit are
    split, and each part is an update of its own at the expert. Making one raises UnknownLayer, SpecMismatch when
    `in_features` is not the layer's, or ConfigError for a term that cannot be kept.

    Forward raises SpecMismatch, EmptyBatch or NonFiniteTensor before anything is sent, and NotEnoughExperts, with a
    cause per uid, when a row has fewer than k_min answers. Backward goes to the experts that answered; one that fails
    is left out of the gradient of x, a row without any gets zero (both counted in `swarm.stats()`), and only a batch
    without any answer raises.
    """

    def __init__(
        self,
        swarm: Swarm,
        layer: str,
        k_best: int = 4,
        *,
        k_min: int | None = None,
        deadline_s: float | None = None,
        grace_s: float | None = None,
        in_features: int | None = None,
        compression: Compression | str | tuple[str, str] = "none",
    ) -> None:
        super().__init__()
        self.layer: LayerSpec = swarm.project.layer(layer)
        if in_features is not None and in_features != self.layer.hidden_size:
            raise SpecMismatch(f"layer {layer} takes {self.layer.hidden_size} features, not in_features={in_features}")
        self.k_best = k_best
        self.terms = Terms(
            self.layer,
            self.layer.k_min if k_min is None else k_min,
            self.layer.deadline_s if deadline_s is None else deadline_s,
            self.layer.grace_s if grace_s is None else grace_s,
            compression_of(compression, f"layer {layer}"),
        )
        if not 1 <= self.terms.k_min <= k_best:
            raise ConfigError(f"layer {layer}: k_min is {self.terms.k_min}; it must lie between 1 and k_best={k_best}")
        if not self.terms.deadline_s > 0 or not self.terms.grace_s >= 0:
            raise ConfigError(f"layer {layer}: deadline_s must be positive and grace_s not negative")
        self.gate = GatingFunction.of_layer(swarm, layer, k_best)
        self._calls: CallContext = swarm.calls
        self._living: LivingExperts = swarm.living(layer)
        self._last_use: tuple[Tensor, Tensor, Tensor] | None = None  # weights, their cells, the living cells

    def forward(self, x: Tensor) -> Tensor:
        """The mixture of each row's experts, of the shape of x."""
        row_shape = self.layer.row_shape
        shape = tuple(getattr(x, "shape", ()))  # what is no tensor is refused below, with the expert's name
        if len(shape) > len(row_shape) + 1 and shape[-len(row_shape) :] == row_shape:
            return self._mixture(x.flatten(0, -len(row_shape) - 1)).view(shape)
        return self._mixture(x)

    def balance_loss(self) -> Tensor:
        """The importance loss of the last forward with autograd on, differentiable: add a little of it to the loss.

        Zero when all living experts weigh the same over the batch (Shazeer et al., 2017). Raises UsageError before a
        forward.
        """
        if self._last_use is None:
            raise UsageError(f"layer {self.layer.prefix}: balance_loss() belongs to a forward; call the layer first")
        return importance_loss(*self._last_use)

    def __getstate__(self) -> dict[str, object]:
        """For copies: the last batch's use stays behind, since its graph cannot be copied."""
        return {**self.__dict__, "_last_use": None}

    def extra_repr(self) -> str:
        terms = self.terms
        times = f"deadline_s={terms.deadline_s:g}, grace_s={terms.grace_s:g}"
        return f"layer={self.layer.prefix!r}, k_best={self.k_best}, k_min={terms.k_min}, {times}"

    def _mixture(self, x: Tensor) -> Tensor:
        check_rows(f"layer {self.layer.prefix}", self.layer, x)
        with self._calls.tracing.round(self.layer.prefix, "forward", x.shape[0]) as traced:
            with section(traced, "gate"):
                lines_RL = self.gate.line_scores(x)
            plan = _Plan(self._calls, self.terms, self._living, lines_RL.detach().to("cpu"), self.k_best, traced)
            answers_RSx: Tensor
            cells_RS: Tensor
            answers_RSx, cells_RS = _FanOutToExperts.apply(  # type: ignore[no-untyped-call]
                x, training_anchor(self.layer), plan
            )
            with section(traced, "mix"):
                scores_RS = cell_scores(lines_RL, self.layer.grid, cells_RS.clamp_min(0))
                weights_RS = mixture_weights(scores_RS, cells_RS >= 0)
                if torch.is_grad_enabled():
                    self._last_use = weights_RS, cells_RS, self._living.now()[1].cells_N.to(cells_RS.device)
                return mix(answers_RSx, weights_RS)


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """What one forward needs besides its tensors with gradients."""

    calls: CallContext
    terms: Terms
    living: LivingExperts
    lines_RL: Tensor
    k_best: int
    traced: TracedRound | None


class _SavedRound(FunctionCtx):
    """What forward leaves for backward."""

    calls: CallContext
    terms: Terms
    parts: tuple[Part, ...]
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]


class _FanOutToExperts(torch.autograd.Function):
    """x [R, *row shape] to the answers of its experts [R, S, *row shape] and their cells [R, S]."""

    @staticmethod
    def forward(ctx: _SavedRound, x: Tensor, anchor: Tensor, plan: _Plan) -> tuple[Tensor, Tensor]:
        terms = plan.terms
        deadline = plan.calls.clock.monotonic_s() + terms.deadline_s
        plan.living.look_for(plan.lines_RL, plan.k_best, deadline)
        view, index = plan.living.at_least(terms.k_min, deadline)
        if len(index) < terms.k_min:
            raise not_enough(terms.layer.prefix, len(x), len(x), terms.k_min, {})
        with section(plan.traced, "choose"):
            chosen_RK = best_cells(plan.lines_RL, index, plan.k_best)
        asking = ForwardRound(plan.calls, terms, plan.living, x.detach().to("cpu"), plan.lines_RL, plan.traced)
        answers = asking.run(view, chosen_RK, deadline)
        ctx.calls, ctx.terms, ctx.parts = plan.calls, terms, answers.parts
        ctx.save_for_backward(x)
        cells_RS = answers.cells.to(x.device)
        ctx.mark_non_differentiable(cells_RS)
        return answers.tensor.to(x.device), cells_RS

    @staticmethod
    def backward(ctx: _SavedRound, gradient_RSx: Tensor, _: Tensor | None) -> tuple[Tensor | None, None, None]:
        name = f"layer {ctx.terms.layer.prefix}"
        check_first_order(name)
        check_gradient(name, gradient_RSx)
        (x,) = ctx.saved_tensors
        gradient = gradient_RSx.detach().to("cpu").contiguous()
        with ctx.calls.tracing.round(ctx.terms.layer.prefix, "backward", x.shape[0]) as traced:
            x_gradient = ask_backward(ctx.calls, ctx.terms, x.detach().to("cpu"), gradient, ctx.parts, traced)
        return x_gradient.to(x.device) if ctx.needs_input_grad[0] else None, None, None
