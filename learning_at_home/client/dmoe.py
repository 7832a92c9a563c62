"""The decentralized mixture of experts as one PyTorch layer.

One autograd Function fans out to all experts at once, forward and backward (one blocking Function per expert would
run them one after another); scores, softmax and sum are plain PyTorch around it, so that autograd makes the gate's
gradient exact. Source: Ryabinin & Gusev, NeurIPS 2020 ("Learning@home"). Formulas: docs/layer.md.
"""

# R rows in the batch, K chosen per row, S slots per row (the most answers that any row has), L grid lines

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from learning_at_home.client.backward_round import ask_backward
from learning_at_home.client.checks import check_first_order, check_gradient, check_is_expert, check_rows
from learning_at_home.client.choice import Choice
from learning_at_home.client.compression import Compression, compression_of
from learning_at_home.client.fanout import CallContext
from learning_at_home.client.forward_round import ForwardRound
from learning_at_home.client.gating import GatingFunction, Noise, gated_input
from learning_at_home.client.living import LivingExperts
from learning_at_home.client.mixture import add_rest, importance_loss, load_loss, mix, mixture_weights
from learning_at_home.client.nested_call import Leaves, by_leaf, check_all_finite, check_leaves, flat_rows
from learning_at_home.client.pace import Paces
from learning_at_home.client.remote_expert import training_anchor
from learning_at_home.client.rounds import OnMissing, Part, Terms, not_enough
from learning_at_home.client.selection import CellIndex, cell_scores
from learning_at_home.client.swarm_module import SwarmModule
from learning_at_home.client.traced_round import TracedRound
from learning_at_home.client.tracing import section
from learning_at_home.client.usage import Usage, UsageMeter
from learning_at_home.directory.directory import LayerView
from learning_at_home.errors import ConfigError, SpecMismatch, UsageError
from learning_at_home.wire.messages import Operation

if TYPE_CHECKING:
    from learning_at_home.client.swarm import Swarm


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """How a batch used the experts: its scores with and without noise, who answered, and who could be chosen."""

    lines_RL: Tensor
    noise: Noise | None
    weights_RS: Tensor
    cells_RS: Tensor
    candidates: CellIndex


class DMoE(SwarmModule):
    """`DMoE(swarm, layer="ffn0", k_best=4)(x)`: x [..., *row shape] of the layer's dtype to the same shape, any device.

    Of a layer with a schema: `outputs = DMoE(swarm, "gru0")(x, mask=m, state=(h, c))`, nested as the schema says. Each
    output is mixed by the same weights. The gate scores the first floating input whose rows are vectors or sequences
    of vectors, or the one whose path is `gate_on`: "0", "state.1".

    Every row goes to its `k_best` best living experts; it needs answers of `k_min`, and once it has them the others
    have `grace_s` more. When too few answer, the next best living ones are asked, within `deadline_s`. The defaults
    of k_min, deadline_s and grace_s are the project's. `compression`: "float16", "bfloat16" or "int8" for what is sent
    and what comes back, or a pair of two; what it loses: docs/performance.md. Batches over one request's limit are
    split, and each part is an update of its own at the expert. `train_experts`: whether a backward updates the experts
    while the layer is in training mode; None: as long as the gate's parameters ask for gradients. In evaluation mode
    the experts' dropout is off, and a backward brings gradients and updates nothing. Making one raises UnknownLayer,
    SpecMismatch when `in_features` is not the layer's, or ConfigError for a term that cannot be kept.

    Forward raises SpecMismatch, EmptyBatch or NonFiniteTensor before anything is sent, and NotEnoughExperts, with a
    cause per uid, when a row has fewer than k_min answers. Backward goes to the experts that answered; one that fails
    is left out of the gradient of x, a row without any gets zero (both counted in `swarm.stats()`), and only a batch
    without any answer raises.

    `on_missing="pass"`: nothing of that raises NotEnoughExperts. A row with fewer than k_min answers by the deadline
    passes through unchanged, and so does its gradient; see `passed`. `noisy` and `jitter` of the gate: see
    GatingFunction. `latency_weight`: for each second that an expert's host is expected to take, so much is taken from
    the expert's score, when experts are chosen and not in the mixture's softmax. `circuit_breaker`: leave hosts alone
    for a while that are far slower than the layer's others, or fail far more often.
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
        on_missing: OnMissing = "raise",
        noisy: bool = False,
        latency_weight: float = 0.0,
        circuit_breaker: bool = True,
        jitter: float = 0.0,
        train_experts: bool | None = None,
        gate_on: str | None = None,
    ) -> None:
        super().__init__(f"layer {layer}", swarm.project.layer(layer))
        check_is_expert(self.layer)
        self.train_experts = train_experts
        self._gated = gated_input(self.layer, gate_on)
        features = self.layer.inputs[self._gated].shape[-1]
        if in_features is not None and in_features != features:
            raise SpecMismatch(f"layer {layer} takes {features} features, not in_features={in_features}")
        self.k_best = k_best
        self.terms = Terms(
            self.layer,
            self.layer.k_min if k_min is None else k_min,
            self.layer.deadline_s if deadline_s is None else deadline_s,
            self.layer.grace_s if grace_s is None else grace_s,
            compression_of(compression, f"layer {layer}"),
            on_missing,
        )
        self.latency_weight = latency_weight
        self.circuit_breaker = circuit_breaker
        self._check_settings()
        self.gate = GatingFunction.of_layer(swarm, layer, k_best, noisy=noisy, jitter=jitter, gate_on=gate_on)
        self._calls: CallContext = swarm.calls
        self._living: LivingExperts = swarm.living(layer)
        self._paces = Paces(self._calls)
        self._meter = UsageMeter(layer, self.layer.cells)
        self._may_pass = on_missing == "pass"
        self._last_use: Use | None = None  # of the last forward with autograd on
        self._last_passed: Tensor | None = None

    @property
    def trains_experts(self) -> bool:
        """Whether a backward through a forward that is made now lets the experts learn."""
        if self.train_experts is None:
            return self.training and any(parameter.requires_grad for parameter in self.gate.parameters())
        return self.training and self.train_experts

    def _compute(self, x: Tensor) -> Tensor:
        """The mixture of each row's experts, of the shape of x."""
        row_shape = self.layer.row_shape
        shape = tuple(getattr(x, "shape", ()))  # what is no tensor is refused below, with the expert's name
        if len(shape) > len(row_shape) + 1 and shape[-len(row_shape) :] == row_shape:
            y = self._checked_mixture(x.flatten(0, -len(row_shape) - 1)).view(shape)
            if self._may_pass:
                self._last_passed = self.passed.view(shape[: -len(row_shape)])
            return y
        return self._checked_mixture(x)

    def _checked_mixture(self, x: Tensor) -> Tensor:
        check_rows(self._owner, self.layer, x)
        return self._mixture((x,))[0]

    def _compute_nested(self, leaves: Leaves) -> Leaves:
        """The mixture of each output of each row's experts."""
        specs = self.layer.inputs
        leading = leaves[0].shape[: max(1, leaves[0].dim() - len(specs[0].shape))]
        if len(leading) > 1:
            leaves = tuple([flat_rows(leaf, leading, spec.shape) for leaf, spec in zip(leaves, specs, strict=True)])
        check_leaves(self._owner, self.layer, leaves)
        check_all_finite(self._owner, self.layer, leaves)
        outputs = self._mixture(leaves)
        if len(leading) == 1:
            return outputs
        if self._may_pass:
            self._last_passed = self.passed.view(leading)
        return tuple([output.view(*leading, *output.shape[1:]) for output in outputs])

    @property
    def passed(self) -> Tensor:
        """Which rows of the last forward passed through unchanged: bool, of the leading dimensions of x.

        Raises UsageError before a forward, and where no row can pass.
        """
        if not self._may_pass:
            raise UsageError(f"layer {self.layer.prefix}: no row passes through it without on_missing='pass'")
        if self._last_passed is None:
            raise UsageError(f"layer {self.layer.prefix}: `passed` belongs to a forward; call the layer first")
        return self._last_passed

    def balance_loss(self) -> Tensor:
        """The balance of the last forward with autograd on, differentiable: add a little of it (0.01) to the loss.

        The importance loss, which is zero when all living experts weigh the same over the batch; of a noisy gate also
        the load loss, zero when all would get as many rows (Shazeer et al., 2017). Raises UsageError before a forward.
        """
        if self._last_use is None:
            raise UsageError(f"layer {self.layer.prefix}: balance_loss() belongs to a forward; call the layer first")
        if not len(self._last_use.candidates):
            return self._last_use.lines_RL.sum() * 0.0  # nobody was alive, and all rows passed through
        return self._balance_loss(self._last_use)

    def usage(self) -> Usage:
        """How the rows of the last batches with autograd on were spread over the experts that are alive now.

        `swarm.report(step, entropy=layer.usage().entropy_share)` puts it on the dashboard. A gate that has collapsed is
        also told in the log, as a warning, at most every ten minutes.
        """
        return self._meter.usage(self._living.now()[1].cells_N.numpy())

    def __getstate__(self) -> dict[str, object]:
        """For copies: the last batch's use stays behind, since its graph cannot be copied."""
        return {**self.__dict__, "_last_use": None, "_last_passed": None}

    def _follow(self, original: SwarmModule) -> None:
        """Be as frozen as the layer that this one is a copy of, and count usage together with it."""
        super()._follow(original)
        if isinstance(original, DMoE):
            self._meter = original._meter

    def extra_repr(self) -> str:
        terms = self.terms
        times = f"deadline_s={terms.deadline_s:g}, grace_s={terms.grace_s:g}"
        missing = f", on_missing={terms.on_missing!r}" if terms.on_missing != "raise" else ""
        latency = f", latency_weight={self.latency_weight:g}" if self.latency_weight else ""
        return f"layer={self.layer.prefix!r}, k_best={self.k_best}, k_min={terms.k_min}, {times}{missing}{latency}"

    def _check_settings(self) -> None:
        name, terms = f"layer {self.layer.prefix}", self.terms
        if not 1 <= terms.k_min <= self.k_best:
            raise ConfigError(f"{name}: k_min is {terms.k_min}; it must lie between 1 and k_best={self.k_best}")
        if not terms.deadline_s > 0 or not terms.grace_s >= 0:
            raise ConfigError(f"{name}: deadline_s must be positive and grace_s not negative")
        if terms.on_missing not in get_args(OnMissing):
            raise ConfigError(f"{name}: on_missing={terms.on_missing!r}; it is one of {', '.join(get_args(OnMissing))}")
        if terms.on_missing == "pass":
            self._check_passes("on_missing='pass'")
        if not 0 <= self.latency_weight < math.inf:
            raise ConfigError(f"{name}: latency_weight is {self.latency_weight}; it must be finite and not negative")

    def _check_passes(self, why: str) -> None:
        """Raises ConfigError when a row cannot stand for its experts' output."""
        outputs, gated = self.layer.outputs, self.layer.inputs[self._gated]
        if len(outputs) > 1 or (outputs[0].dtype, outputs[0].shape) != (gated.dtype, gated.shape):
            raise ConfigError(
                f"layer {self.layer.prefix}: {why} needs experts with one output like the input that is gated on, "
                f"{gated.path}: {gated}; this layer is {self.layer.schema}"
            )

    def _choice(self, lines_RL: Tensor) -> Choice:
        """How experts are chosen for a batch of these scores: detached, on the CPU, float32 or float64."""
        return Choice(lines_RL, self.k_best, self._penalty if self.latency_weight else None)

    def _penalty(self, view: LayerView, index: CellIndex) -> Tensor:
        return self.latency_weight * self._paces.expected_s(view, index)

    def _weights(
        self, lines_RL: Tensor, cells_RS: Tensor, passed_R: Tensor | None, candidates: CellIndex
    ) -> tuple[Tensor, Tensor | None]:
        """What each answer weighs [R, S], and what that leaves over for the row itself [R]; None: nothing."""
        answered_RS = cells_RS >= 0
        scores_RS = cell_scores(lines_RL, self.layer.grid, cells_RS.clamp_min(0))
        if passed_R is None:
            return mixture_weights(scores_RS, answered_RS), None
        # Rows that pass have no answer to weigh: their slots hold zeros, and any finite weights will do.
        return mixture_weights(scores_RS, answered_RS | passed_R.unsqueeze(1)), passed_R.to(scores_RS)

    def _balance_loss(self, use: Use) -> Tensor:
        importance = importance_loss(use.weights_RS, use.cells_RS, use.candidates.cells_N.to(use.cells_RS.device))
        if use.noise is None:
            return importance
        noise = use.noise
        return importance + load_loss(use.lines_RL, noise.clean_RL, noise.deviation_RL, use.candidates, self.k_best)

    def _mixture(self, leaves: Leaves) -> Leaves:
        x = leaves[self._gated]
        with self._calls.tracing.round(self.layer.prefix, "forward", x.shape[0]) as traced:
            with section(traced, "gate"):
                lines_RL, noise = self.gate.noisy_line_scores(x)
            # At least float32: bfloat16 ties many cells, and numpy does not know it.
            choice = self._choice(lines_RL.detach().to("cpu", torch.promote_types(lines_RL.dtype, torch.float32)))
            operations = self.forward_operation, self.backward_operation
            plan = _Plan(self._calls, self.terms, self._living, choice, self.circuit_breaker, traced, operations)
            # Between CPU tensors: a GPU has one thread of autograd; who waits there for experts makes all batches wait.
            found: Leaves = _FanOutToExperts.apply(  # type: ignore[no-untyped-call]
                training_anchor(self.layer, self.trains_experts), plan, *[leaf.to("cpu") for leaf in leaves]
            )
            *answers_RSx, cells_RS = [tensor.to(x.device) for tensor in found]
            with section(traced, "mix"):
                passed_R = self._note_passed(cells_RS) if self._may_pass else None
                weights_RS, rest_R = self._weights(lines_RL, cells_RS, passed_R, plan.candidates)
                if torch.is_grad_enabled():
                    self._count(cells_RS)
                    self._last_use = Use(lines_RL, noise, weights_RS, cells_RS, plan.candidates)
                mixed = tuple([mix(answer_RSx, weights_RS) for answer_RSx in answers_RSx])
                return mixed if rest_R is None else (add_rest(mixed[0], x, rest_R),)

    def _count(self, cells_RS: Tensor) -> None:
        self._meter.count(cells_RS.cpu().numpy())
        if self._meter.is_due():
            self._meter.warn(self._living.now()[1].cells_N.numpy(), self._calls.clock.monotonic_s())

    def _note_passed(self, cells_RS: Tensor) -> Tensor | None:
        """Which rows pass through: those without an answer; None when none does."""
        self._last_passed = passed_R = cells_RS[:, 0] < 0
        num_passed = int(passed_R.sum())
        if not num_passed:
            return None
        self._calls.stats.passed_through(num_passed)
        return passed_R


@dataclass(slots=True, eq=False)
class _Plan:
    """What one forward needs besides its tensors with gradients, and whom it could have asked."""

    calls: CallContext
    terms: Terms
    living: LivingExperts
    choice: Choice
    circuit_breaker: bool
    traced: TracedRound | None
    operations: tuple[Operation, Operation]  # of its forward and of its backward
    candidates: CellIndex = field(init=False)


class _SavedRound(FunctionCtx):
    """What forward leaves for backward."""

    calls: CallContext
    operation: Operation
    terms: Terms
    parts: tuple[Part, ...]
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]


class _FanOutToExperts(torch.autograd.Function):
    """Inputs [R, *row shape] to the answers of their experts [R, S, *row shape], one tensor for each output, and the
    cells [R, S] behind them, all on the CPU."""

    @staticmethod
    def forward(ctx: _SavedRound, anchor: Tensor, plan: _Plan, *leaves: Tensor) -> tuple[Tensor, ...]:
        terms, choice = plan.terms, plan.choice
        deadline = plan.calls.clock.monotonic_s() + terms.deadline_s
        if plan.circuit_breaker:
            plan.living.judge_hosts()
        plan.living.look_for(choice.lines_RL, choice.k_best, deadline)
        view, index = plan.living.at_least(terms.k_min, deadline)
        with plan.calls.connections.turns:
            with section(plan.traced, "choose"):
                plan.candidates = choice.candidates(index)
                if len(index) >= terms.k_min:
                    chosen_RK = choice.best(view, index)
                elif terms.on_missing == "pass":
                    chosen_RK = torch.full((len(leaves[0]), 1), -1)
                else:
                    raise not_enough(terms.layer.prefix, len(leaves[0]), len(leaves[0]), terms.k_min, {})
            inputs = tuple([leaf.detach() for leaf in leaves])
            asking = ForwardRound(plan.calls, terms, plan.living, inputs, choice, plan.traced, plan.operations[0])
            answers = asking.run(view, chosen_RK, deadline)
        ctx.calls, ctx.terms, ctx.parts, ctx.operation = plan.calls, terms, answers.parts, plan.operations[1]
        ctx.save_for_backward(*leaves)
        ctx.mark_non_differentiable(answers.cells)
        return *answers.tensors, answers.cells

    @staticmethod
    def backward(ctx: _SavedRound, *gradients_RSx: Tensor) -> tuple[Tensor | None, ...]:
        """The last one is that of the cells: none."""
        name = f"layer {ctx.terms.layer.prefix}"
        check_first_order(name)
        for gradient_RSx in gradients_RSx[:-1]:
            check_gradient(name, gradient_RSx)
        leaves = tuple([leaf.detach() for leaf in ctx.saved_tensors])
        gradients = tuple([gradient_RSx.detach().contiguous() for gradient_RSx in gradients_RSx[:-1]])
        with ctx.calls.tracing.round(ctx.terms.layer.prefix, ctx.operation, len(leaves[0])) as traced:
            found = ask_backward(ctx.calls, ctx.terms, leaves, gradients, ctx.parts, traced, ctx.operation)
        return None, None, *by_leaf(leaves, found, ctx.needs_input_grad[2:])
