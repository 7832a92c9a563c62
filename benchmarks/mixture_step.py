"""One step through a mixture of experts, the same for ours, the local one and the rival's. Needs torch alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A batch, and the gradient that comes back to the layer's output."""

    x: Tensor
    gradient: Tensor

    @classmethod
    def random(cls, num_rows: int, hidden_size: int) -> Step:
        return cls(torch.randn(num_rows, hidden_size, requires_grad=True), torch.randn(num_rows, hidden_size))

    def run(self, layer: nn.Module) -> tuple[Tensor, ...]:
        """Forward and backward: the output, the gradient of x, and those of the layer's own parameters."""
        answer = layer(self.x)
        parameters = list(layer.parameters())
        return answer.detach(), *torch.autograd.grad(answer, [self.x, *parameters], self.gradient)
