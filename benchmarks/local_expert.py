"""A host's work on an expert in plain torch: what a remote expert is checked against and compared with.

Forward keeps nothing. Backward computes forward again, clips by the norm of all gradients, and steps fused Adam.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import ProjectRecord
from node_agent.experts.architectures import build_expert
from node_agent.experts.optimizers import Optimizer

CLIP_EPSILON = 1e-6  # as torch.nn.utils.clip_grad_norm_ has it


class LocalExpert:
    """The expert of one cell, with the weights that a node gives it."""

    def __init__(self, project: ProjectRecord, uid: ExpertUid, device: str = "cpu") -> None:
        layer = project.layer(uid.prefix)
        self.module = build_expert(layer, project.id, uid).to(device)
        self.parameters = list(self.module.parameters())
        self._clip_norm = layer.optimizer.clip_norm
        self._optimizer = Optimizer(layer.optimizer, self.parameters)

    @torch.inference_mode()
    def forward(self, rows: Tensor) -> Tensor:
        answer: Tensor = self.module(rows)
        return answer

    def gradients(self, rows: Tensor, output_gradient: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Of the rows and of each parameter; changes nothing."""
        with torch.enable_grad():
            rows = rows.detach().requires_grad_()
            answer = self.module(rows)
            of_rows, *of_parameters = torch.autograd.grad(
                answer, [rows, *self.parameters], output_gradient, allow_unused=True
            )
        return of_rows, tuple(of_parameters)

    @torch.no_grad()
    def backward(self, rows: Tensor, output_gradient: Tensor) -> Tensor:
        """The gradient of the rows; the expert has stepped."""
        of_rows, of_parameters = self.gradients(rows, output_gradient)
        present = [gradient for gradient in of_parameters if gradient is not None]
        if present and self._clip_norm is not None:
            norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(present))))
            if norm > self._clip_norm:
                torch._foreach_mul_(present, self._clip_norm / (norm + CLIP_EPSILON))
        self._optimizer.step(of_parameters)
        return of_rows


def assert_close(what: str, ours: Tensor, plain: Tensor, tolerance: float = 1e-3) -> None:
    """Raises AssertionError when ours differs from plain torch by more than a share of its largest number."""
    ours, plain = ours.detach(), plain.detach()
    difference, largest = float((ours - plain).abs().max()), float(plain.abs().max())
    if not difference <= tolerance * largest:
        raise AssertionError(f"{what} differs from plain torch by up to {difference:.2g}; its largest is {largest:.2g}")
