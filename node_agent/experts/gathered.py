"""Gradients of one expert that wait for company: their sum, and whether it is enough for an update.

The sum, not a mean over rows: a caller's loss is mostly a mean already, and what is added up is what separate updates
would have used, as where gradients are accumulated locally. So a caller's share does not depend on who else called.
Knows no clock: that the time has come, others see.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learning_at_home.project import OptimizerSpec
from node_agent.experts.gradients import Gradients

_NO_ROWS = torch.empty(0)


class Gathered:
    """What one expert has gathered since its last update: gradients that are clipped already."""

    def __init__(self, spec: OptimizerSpec) -> None:
        self._enough_rows = math.inf if spec.update_rows is None else spec.update_rows
        self._sum: Gradients | None = None
        self.rows = 0  # whose gradients are in the sum

    @property
    def norm(self) -> float:
        """What the norm of the sum does not exceed."""
        return 0.0 if self._sum is None else self._sum.norm

    @property
    def is_enough(self) -> bool:
        return self.rows >= self._enough_rows

    def add(self, gradients: Gradients, rows: int) -> None:
        """The parameters' gradients, if there are any, of so many rows. Their memory is from then on the sum's."""
        if all(gradient is None for gradient in gradients.of_parameters):
            return
        total = gradients if self._sum is None else self._sum.plus(gradients)
        self._sum = Gradients(_NO_ROWS, tuple(map(_in_small_memory, total.of_parameters)), total.norm)
        self.rows += rows

    def take(self) -> Gradients:
        """The sum; nothing is gathered then."""
        assert self._sum is not None, "there are rows"
        taken, self._sum, self.rows = self._sum, None, 0
        return taken


def _in_small_memory(gradient: Tensor | None) -> Tensor | None:
    """A part of a group's gradients is copied: to keep it would keep the whole."""
    if gradient is None or gradient.untyped_storage().nbytes() == gradient.nbytes:
        return gradient
    return gradient.clone()
