"""One hosted expert: its network, its optimizer, and what it does for callers.

Not thread-safe: one thread at a time uses it. Knows nothing of requests; several callers' rows may come as one batch,
and a gradient that is not finite never reaches the weights. Source: the runtime of Ryabinin & Gusev, 2020: backward
computes forward again, and the optimizer steps at once. Beyond it: a forward that is still remembered, with the weights
as they were, is not computed again; and gradients may be gathered for a step of more rows.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property

import torch
from torch import Tensor, nn

from learning_at_home.errors import ExpertFailed
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec
from learning_at_home.tensors.finite import is_finite
from learning_at_home.tensors.frames import DTYPES
from learning_at_home.wire.messages import Operation
from node_agent.experts.activations import Activations, Forward
from node_agent.experts.architectures import BACKWARD_FLOP_FACTOR, GRADIENT_FLOP_FACTOR, build_expert, flop_per_row
from node_agent.experts.gathered import Gathered
from node_agent.experts.gradients import Gradients, in_own_memory, largest_norm, total_norm
from node_agent.experts.memory import saved_bytes_per_row
from node_agent.experts.networks import run_network, zero_inputs
from node_agent.experts.optimizers import Optimizer, step_together
from node_agent.experts.pullback import pull_back
from node_agent.experts.randomness import draws_numbers, has_dropout, numbers_from, seed_of

log = logging.getLogger(__name__)

# torch.inference_mode without its Python, which makes a decorator of it, too
_inference_mode: Callable[[bool], AbstractContextManager[object]] = getattr(
    torch._C, "_InferenceMode", torch.inference_mode
)

_NOTHING_DRAWN = nullcontext()
WORTH_REMEMBERING_FLOP = 50e6  # of a forward: about a millisecond of a core; to remember it takes a tenth of that


class Expert:
    """An expert on its device."""

    def __init__(self, uid: ExpertUid, layer: LayerSpec, module: nn.Module, device: torch.device) -> None:
        self.uid = uid
        self.layer = layer
        self.device = device
        self.dtype = DTYPES[layer.dtype]
        self.input_shape, self.row_shape = layer.input_shape, layer.row_shape
        self.has_schema = layer.schema is not None  # then it is a NestedExpert
        self.row_bytes, self.max_rows = layer.row_bytes, layer.max_rows
        self.module = module.to(device).train()
        frozen = layer.optimizer.name == "frozen"
        parameters = list(self.module.parameters())
        for parameter in parameters:
            parameter.requires_grad_(not frozen)
            if not parameter.is_contiguous():
                parameter.data = parameter.data.contiguous()  # fused kernels read memory as it lies
        self.trained = [] if frozen else parameters
        self.clip_norm = layer.optimizer.clip_norm
        self.forward_flop_per_row = flop_per_row(layer)
        self.backward_flop_per_row = BACKWARD_FLOP_FACTOR * self.forward_flop_per_row
        self.flop_per_row: dict[Operation, float] = {
            "forward": self.forward_flop_per_row,
            "backward": self.backward_flop_per_row,
            "gradient": GRADIENT_FLOP_FACTOR * self.forward_flop_per_row,
            "eval_forward": self.forward_flop_per_row,
            "eval_gradient": GRADIENT_FLOP_FACTOR * self.forward_flop_per_row,
        }
        self._optimizer = Optimizer(layer.optimizer, self.trained)
        self.gathers = layer.optimizer.gathers
        self.gathered = Gathered(layer.optimizer)
        self.activations = Activations()  # none; experts of a node share theirs
        self._name = str(uid)
        self.is_random = has_dropout(module)
        self._largest_norm = min([largest_norm(parameter.dtype) for parameter in self.trained], default=math.inf)

    @classmethod
    def create(cls, uid: ExpertUid, layer: LayerSpec, project: str, device: torch.device) -> Expert:
        """A new expert with its initial weights, the same wherever it is made."""
        expert = cls(uid, layer, build_expert(layer, project, uid), device)
        expert.find_out_if_random()
        return expert

    def find_out_if_random(self) -> None:
        """Try whether its network draws random numbers otherwise than by torch's dropout."""
        leaves = zero_inputs(self.layer, 2, self.device)
        self.is_random = draws_numbers(
            self.module, self.kind, lambda: run_network(self._name, self.layer, self.module, leaves), self.device
        )

    @property
    def updates(self) -> int:
        """Optimizer steps so far."""
        return self._optimizer.updates

    @cached_property
    def kind(self) -> tuple[str, LayerSpec]:
        """Equal for experts whose networks are made alike."""
        return f"{type(self.module)} {self.module}", self.layer

    def forward(self, rows: Tensor, *, remember: bool = False) -> Tensor:
        """The network's output for rows on the expert's device, as it is: it may hold NaN or infinity.

        `remember`: a backward of the same rows may follow. They must not change then. A random network is to be called
        within `numbers_for`.
        """
        if (
            remember
            and self.activations.limit_bytes
            and rows.shape[0] * self.forward_flop_per_row >= WORTH_REMEMBERING_FLOP
            and self.module.training
            and (num_bytes := rows.shape[0] * self._remembered_bytes_per_row) <= self.activations.limit_bytes
        ):
            leaf = rows.detach().requires_grad_()
            output: Tensor = self.module(leaf)
            self.activations.keep(self._name, Forward(leaf, output, num_bytes))
            return output.detach()
        if self.is_random:  # some kernels draw otherwise where no gradient is wanted
            recorded: Tensor = self.module(rows.detach().requires_grad_())
            return recorded.detach()
        with _inference_mode(True):
            answer: Tensor = self.module(rows)
        return answer

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Meanwhile its network is in evaluation mode: dropout is off. What it computes then nobody learns from."""
        self.module.eval()
        try:
            yield
        finally:
            self.module.train()

    def numbers_for(self, *rows: Tensor) -> AbstractContextManager[None]:
        """What a random network draws meanwhile follows from the request's rows, as they lie on the CPU."""
        return numbers_from(seed_of(self._name, *rows), self.device) if self.is_random else _NOTHING_DRAWN

    @cached_property
    def _remembered_bytes_per_row(self) -> int:
        return saved_bytes_per_row(self.module, self.layer) + 2 * self.row_bytes

    def gradients(self, rows: Tensor, output_gradient: Tensor) -> Gradients:
        """Gradients of inputs and parameters; changes nothing. Raises ExpertFailed when one is not finite."""
        rows, (of_rows, *found) = self._pulled_back(rows, output_gradient, self.trained)
        if of_rows is None:
            of_rows = torch.zeros_like(rows)
        of_parameters = in_own_memory(found, rows, of_rows, output_gradient)
        norm = total_norm(of_parameters)
        if not math.isfinite(norm) or not is_finite(of_rows):
            raise ExpertFailed(f"{self.uid}: the gradient is not finite for these inputs; no step was taken")
        return Gradients(of_rows, of_parameters, norm)

    def gradient_of_rows(self, rows: Tensor, output_gradient: Tensor) -> Tensor:
        """The gradient of the inputs alone; changes nothing. It may hold NaN or infinity."""
        rows, (of_rows,) = self._pulled_back(rows, output_gradient, ())
        return torch.zeros_like(rows) if of_rows is None else of_rows.detach()

    def _pulled_back(
        self, rows: Tensor, output_gradient: Tensor, parameters: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """The rows that were computed, and the gradients of them and of these parameters."""
        remembered = self.activations.take(self._name, rows) if self.module.training else None
        if remembered is not None:
            try:
                leaf = remembered.rows
                return leaf, pull_back(remembered.output, output_gradient, [leaf, *parameters])
            except RuntimeError as error:  # autograd saw that a weight was changed by somebody else than a step
                log.info("%s: a remembered forward is of no use: %s", self.uid, error)
        rows = rows.detach().requires_grad_()
        return rows, pull_back(self.module(rows), output_gradient, [rows, *parameters])

    def check_can_step(self, gradients: Gradients, times: int = 1) -> None:
        """Raises ExpertFailed when so many gradients of this norm might overflow the optimizer's state."""
        if self.trained and not gradients.norm * times < self._largest_norm:
            raise ExpertFailed(
                f"{self.uid}: the gradient's norm, {gradients.norm:.3g}, is too large for an optimizer of "
                f"{self.layer.dtype}; no step was taken"
            )

    def step(self, gradients: Gradients) -> None:
        """Let the optimizer step by gradients that are clipped already. Raises ExpertFailed, changing nothing."""
        self.check_can_step(gradients)
        step_experts([self], [gradients])

    def apply(self, gradients: Gradients, rows: int) -> None:
        """Step by the clipped gradients of so many rows, or gather them until there are enough.

        Raises ExpertFailed, changing nothing.
        """
        if not self.gathers:
            self.step(gradients)
            return
        self.check_can_step(gradients)
        apply_gradients([self], [gradients], [rows])

    def step_gathered(self) -> None:
        """Step by what was gathered, if anything was. It is gone also when the optimizer fails, which is raised."""
        if self.gathered.rows:
            step_experts([self], [self.gathered.take()])

    def forget(self) -> None:
        """The forwards that are remembered, if the weights change by a step."""
        if self.trained:
            self.activations.forget(self._name)


def apply_gradients(experts: Sequence[Expert], gradients: Sequence[Gradients], rows: Sequence[int]) -> None:
    """For each of these experts of one layer, its gradients of so many rows, which have passed `check_can_step`.

    They step by one kernel; an expert that gathers steps when it has enough.
    """
    if not experts or not experts[0].gathers:
        step_experts(experts, gradients)
        return
    for expert, of_one, num_rows in zip(experts, gradients, rows, strict=True):
        if not of_one.norm + expert.gathered.norm < expert._largest_norm:  # each could step alone
            expert.step_gathered()
        expert.gathered.add(of_one, num_rows)
    ready = [expert for expert in experts if expert.gathered.is_enough]
    step_experts(ready, [expert.gathered.take() for expert in ready])


def step_experts(experts: Sequence[Expert], gradients: Sequence[Gradients]) -> None:
    """One step of each of these experts of one layer, which have passed `check_can_step`, by one kernel."""
    for expert in experts:
        expert.forget()
    step_together([expert._optimizer for expert in experts], [of_one.of_parameters for of_one in gradients])
