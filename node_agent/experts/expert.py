"""One hosted expert: its network, its optimizer, and the two things it does for callers.

Not thread-safe: one device thread uses it. Knows nothing of requests; several callers' rows come as one batch, and a
result that is not finite never reaches the weights. Source: the runtime of Ryabinin & Gusev, 2020: forward keeps
nothing, backward computes forward again, and the optimizer steps at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from learning_at_home.errors import ExpertFailed
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec
from learning_at_home.tensors.finite import is_finite
from node_agent.experts.architectures import BACKWARD_FLOP_FACTOR, build_expert, flop_per_row
from node_agent.experts.optimizers import Optimizer

CLIP_EPSILON = 1e-6  # as torch.nn.utils.clip_grad_norm_ has it, so that a local step is the same step


@dataclass(frozen=True, slots=True)
class Gradients:
    """What one backward found, before anything is applied."""

    of_rows: Tensor
    of_parameters: tuple[Tensor | None, ...]  # None: the output does not depend on the parameter

    def plus(self, other: Gradients) -> Gradients:
        """Both batches' rows together; the parameters' gradients add up."""
        parameters = tuple(
            theirs if ours is None else ours if theirs is None else ours + theirs
            for ours, theirs in zip(self.of_parameters, other.of_parameters, strict=True)
        )
        return Gradients(torch.cat([self.of_rows, other.of_rows]), parameters)


class Expert:
    """An expert on its device. `updates` counts its optimizer steps."""

    def __init__(self, uid: ExpertUid, layer: LayerSpec, module: nn.Module, device: torch.device) -> None:
        self.uid = uid
        self.layer = layer
        self.device = device
        self.module = module.to(device).train()
        self.updates = 0
        self._parameters = list(self.module.parameters())
        frozen = layer.optimizer.name == "frozen"
        self._optimizer = None if frozen else Optimizer(layer.optimizer, self._parameters)
        for parameter in self._parameters:
            parameter.requires_grad_(self._optimizer is not None)
        self.forward_flop_per_row = flop_per_row(layer)
        self.backward_flop_per_row = BACKWARD_FLOP_FACTOR * self.forward_flop_per_row

    @classmethod
    def create(cls, uid: ExpertUid, layer: LayerSpec, project: str, device: torch.device) -> Expert:
        """A new expert with its initial weights, the same wherever it is made."""
        return cls(uid, layer, build_expert(layer, project, uid), device)

    @torch.inference_mode()
    def forward(self, rows: Tensor) -> Tensor:
        """The network's output for rows on the expert's device. Raises ExpertFailed when it is not finite."""
        answer: Tensor = self.module(rows)
        if not is_finite(answer):
            raise ExpertFailed(f"{self.uid}: the output of these inputs is not finite")
        return answer

    def gradients(self, rows: Tensor, output_gradient: Tensor) -> Gradients:
        """Gradients of inputs and parameters; changes nothing. Raises ExpertFailed when one is not finite."""
        trained = self._parameters if self._optimizer is not None else []
        rows = rows.detach().requires_grad_()
        answer = self.module(rows)
        if answer.requires_grad:
            # The product's gradient by the answer is output_gradient, exactly. Given as grad_outputs it would make
            # torch import sympy: half a second and 500 modules.
            product = torch.dot(answer.reshape(-1), output_gradient.reshape(-1))
            found: Sequence[Tensor | None] = torch.autograd.grad(product, [rows, *trained], allow_unused=True)
        else:
            found = [None] * (1 + len(trained))
        of_rows = torch.zeros_like(rows) if found[0] is None else found[0]
        of_parameters = found[1:]
        if not is_finite(of_rows) or not math.isfinite(total_norm(of_parameters)):
            raise ExpertFailed(f"{self.uid}: the gradient is not finite for these inputs; no step was taken")
        return Gradients(of_rows, tuple(of_parameters))

    def step(self, of_parameters: Sequence[Tensor | None]) -> None:
        """Clip to the layer's norm, in place, and let the optimizer step. Raises ExpertFailed, changing nothing."""
        if self._optimizer is None:
            return
        norm = total_norm(of_parameters)
        if not math.isfinite(norm):
            raise ExpertFailed(f"{self.uid}: the gradients of this batch together are not finite; no step was taken")
        clip_norm = self.layer.optimizer.clip_norm
        scale = 1.0 if clip_norm is None else clip_norm / (norm + CLIP_EPSILON)
        if scale < 1:
            torch._foreach_mul_([gradient for gradient in of_parameters if gradient is not None], scale)
        if self._optimizer.step(of_parameters):
            self.updates += 1


def total_norm(gradients: Sequence[Tensor | None]) -> float:
    """The Euclidean norm of all gradients together; 0 when there are none."""
    present = [gradient for gradient in gradients if gradient is not None]
    if not present:
        return 0.0
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(present))))
