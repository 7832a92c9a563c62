"""What a backward found, and how large it is. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CLIP_EPSILON = 1e-6  # as torch.nn.utils.clip_grad_norm_ has it, so that a local step is the same step


@dataclass(frozen=True, slots=True)
class Gradients:
    """Of one backward, before anything is applied."""

    of_rows: Tensor
    of_parameters: tuple[Tensor | None, ...]  # None: the output does not depend on the parameter
    norm: float  # Euclidean, of all parameters' gradients together; of a sum, no less than that

    def clipped(self, clip_norm: float | None) -> Gradients:
        """These, in place, with the parameters' gradients scaled down to a norm of at most `clip_norm`."""
        scale = clip_scale(self.norm, clip_norm)
        if scale == 1.0:
            return self
        torch._foreach_mul_([gradient for gradient in self.of_parameters if gradient is not None], scale)
        return Gradients(self.of_rows, self.of_parameters, self.norm * scale)

    def plus(self, other: Gradients) -> Gradients:
        """The parameters' gradients added up, in the memory of these; the rows' stay these."""
        both = [
            (ours, theirs)
            for ours, theirs in zip(self.of_parameters, other.of_parameters, strict=True)
            if ours is not None and theirs is not None
        ]
        if both:
            torch._foreach_add_([ours for ours, _ in both], [theirs for _, theirs in both])
        of_parameters = tuple(
            theirs if ours is None else ours
            for ours, theirs in zip(self.of_parameters, other.of_parameters, strict=True)
        )
        return Gradients(self.of_rows, of_parameters, self.norm + other.norm)


def clip_scale(norm: float, clip_norm: float | None) -> float:
    """What a gradient of this norm is multiplied with, at most 1."""
    return 1.0 if clip_norm is None else min(1.0, clip_norm / (norm + CLIP_EPSILON))


def in_own_memory(gradients: Sequence[Tensor | None], *foreign: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients, contiguous as fused kernels take them, and free to be changed.

    Autograd may give one tensor to two parameters, a transposed one, or the very output gradient that came in.
    """
    if all(gradient is None for gradient in gradients):
        return tuple(gradients)
    taken = {tensor.untyped_storage().data_ptr() for tensor in foreign}
    owned: list[Tensor | None] = []
    for gradient in gradients:
        if gradient is not None:
            memory = gradient.untyped_storage().data_ptr()
            if memory in taken or not gradient.is_contiguous():
                gradient = gradient.clone(memory_format=torch.contiguous_format)
            taken.add(memory)
        owned.append(gradient)
    return tuple(owned)


def total_norm(gradients: Sequence[Tensor | None]) -> float:
    """The Euclidean norm of all gradients together; 0 when there are none. Not finite when a number in them is not.

    A large finite gradient whose squares overflow has a finite norm, too.
    """
    present = [gradient for gradient in gradients if gradient is not None]
    if not present:
        return 0.0
    norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(present))))
    if math.isfinite(norm):
        return norm
    largest = max(float(gradient.abs().max()) for gradient in present if gradient.numel())
    if not math.isfinite(largest) or largest == 0.0:
        return norm
    return largest * math.hypot(*(float((gradient / largest).norm()) for gradient in present))


def largest_norm(dtype: torch.dtype) -> float:
    """The norm from which on a square in an optimizer's state may overflow."""
    return math.sqrt(torch.finfo(dtype).max)
