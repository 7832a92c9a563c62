"""Whether a tensor may be trusted as numbers. Pure."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learning_at_home.tensors.small import are_finite


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity.

    One pass without a copy: a sum with NaN or infinity in it is never finite. One of finite numbers may overflow, which
    only a second look tells.
    """
    if are_finite(tensor):
        return True
    return not tensor.is_floating_point() or math.isfinite(tensor.detach().sum().item()) or each_is_finite(tensor)


def each_is_finite(tensor: Tensor) -> bool:
    """The same by the smallest and the largest number, which are NaN when one is: slower, but nothing overflows."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    least, most = torch.aminmax(tensor.detach())
    return math.isfinite(least.item()) and math.isfinite(most.item())
