"""Small tensors, to their bytes and back, and whether they are finite, at the least cost there is.

What is small is dominated by the way there: torch's `sum().item()` takes 33 µs and `numpy()` 13 to 30 µs in a thread
that has just waited for the network, whose core has to fetch all the code again; in a loop they take 3. So nothing of
torch is touched here but a tensor's address, and of numpy the least. Pure.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learning_at_home.wire.messages import TensorSpec

COPIED_BYTES = 32 * 1024  # of what is larger a copy costs more than the way
IN_NUMPY = {name: np.dtype(name) for name in ("float64", "float32", "float16")} | {"bfloat16": np.dtype(np.int16)}
# Of these a sum of squares tells whether all are finite; those of two bytes overflow it at once.
_SUMMED = {torch.float32: IN_NUMPY["float32"], torch.float64: IN_NUMPY["float64"]}
# `ctypes.string_at` without its Python
_copy_of = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi)
)


# `vdot` tells nobody of an overflow, as `dot` would; without the question whether an array is numpy's own.
_square: Callable[..., float] = getattr(np.vdot, "_implementation", np.vdot)


def is_small(tensor: Tensor) -> bool:
    """Whether `bytes_of` and `are_finite` take it: it has memory, which holds its numbers, in their order."""
    return (
        0 < tensor.nbytes <= COPIED_BYTES
        and tensor.is_cpu
        and tensor.is_contiguous()
        and not tensor.is_neg()
        and tensor.data_ptr() != 0  # autograd knows zeros without memory
    )


def bytes_of(tensor: Tensor) -> bytes:
    """A copy of a small tensor's memory."""
    copy: bytes = _copy_of(tensor.data_ptr(), tensor.nbytes)
    return copy


def are_finite(tensor: Tensor) -> bool:
    """Whether a small tensor's numbers are all finite; False also when that cannot be told so cheaply."""
    dtype = _SUMMED.get(tensor.dtype)
    if dtype is None:
        return False
    numbers = np.frombuffer(_copy_of(tensor.data_ptr(), tensor.nbytes), dtype)
    return math.isfinite(_square(numbers, numbers))


def from_bytes(spec: TensorSpec, frame: Any) -> Tensor:
    """The tensor of a header entry, from a copy of its bytes. Not for tensors without elements."""
    tensor = torch.from_numpy(np.ndarray(spec.shape, IN_NUMPY[spec.dtype], bytearray(frame)))
    return tensor.view(torch.bfloat16) if spec.dtype == "bfloat16" else tensor


def from_bytes_checked(spec: TensorSpec, frame: Any) -> tuple[Tensor, bool]:
    """The same, and whether its numbers are all finite, as `are_finite` tells."""
    numbers = np.ndarray(spec.shape, IN_NUMPY[spec.dtype], bytearray(frame))
    tensor = torch.from_numpy(numbers)
    if spec.dtype == "bfloat16":
        return tensor.view(torch.bfloat16), False
    return tensor, numbers.itemsize >= 4 and math.isfinite(_square(numbers, numbers))
