"""Small tensors, to their bytes and back, and whether they are finite, at the least cost there is.

What is small is dominated by the way there: torch's `sum().item()` takes 33 µs and `numpy()` 13 to 30 µs in a thread
that has just waited for the network, whose core has to fetch all the code again; in a loop they take 3. And each of
torch's operations, and numpy's sums, gives the interpreter lock away: among many threads that call, every one of them
wakes another. So nothing of torch is touched here but what a tensor is and where, and of numpy the least. Pure.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learning_at_home.project import DTYPE_BYTES, FLOAT_BYTES
from learning_at_home.wire.messages import TensorSpec

COPIED_BYTES = 32 * 1024  # of what is larger a copy costs more than the way
NOT_IN_NUMPY = {"bfloat16": "int16", "bool": "uint8"}  # as what they are read; torch computes nonsense with a bool of 2
IN_NUMPY = {name: np.dtype(NOT_IN_NUMPY.get(name, name)) for name in DTYPE_BYTES}
# The last byte, sign and first bits of the exponent, of all numbers that are not finite; and of a few: the largest.
_SUSPECTS: dict[str, tuple[bytes, ...]] = {
    "float64": (b"\x7f", b"\xff"),
    "float32": (b"\x7f", b"\xff"),
    "bfloat16": (b"\x7f", b"\xff"),
    "float16": (b"\x7c", b"\x7d", b"\x7e", b"\x7f", b"\xfc", b"\xfd", b"\xfe", b"\xff"),
}
_SUSPECTS |= {name: () for name in DTYPE_BYTES if name not in FLOAT_BYTES}
_LAST_BYTES: dict[str, slice] = {name: slice(d.itemsize - 1, None, d.itemsize) for name, d in IN_NUMPY.items()}
_NAMES = {getattr(torch, name): name for name in _SUSPECTS}
_dispatch_keys, _NEGATIVE = torch._C._dispatch_keys, torch._C.DispatchKey.Negative
# `ctypes.string_at` without its Python
_copy_of = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi)
)


def bytes_of(tensor: Tensor) -> bytes | None:
    """A copy of a small tensor's memory, if it has some that holds its numbers, in their order; else None."""
    if (
        0 < (num_bytes := tensor.nbytes) <= COPIED_BYTES
        and tensor.is_cpu
        and tensor.is_contiguous()
        and not _dispatch_keys(tensor).has(_NEGATIVE)  # `is_neg` gives the interpreter lock away
        and (address := tensor.data_ptr())  # autograd knows zeros without memory
    ):
        copy: bytes = _copy_of(address, num_bytes)
        return copy
    return None


def are_finite(tensor: Tensor) -> bool:
    """Whether the numbers of a small tensor are all finite; False also when that cannot be told so cheaply."""
    name = _NAMES.get(tensor.dtype)
    numbers = None if name is None else bytes_of(tensor)
    return name is not None and numbers is not None and are_finite_bytes(numbers, name)


def are_finite_bytes(numbers: bytes | bytearray, dtype: str) -> bool:
    """The same of a copy of its memory, with the dtype's name in a header."""
    last = numbers[_LAST_BYTES[dtype]]
    for byte in _SUSPECTS[dtype]:  # noqa: SIM110 - `any` would make a generator
        if byte in last:
            return False
    return True


def from_bytes(spec: TensorSpec, frame: Any) -> Tensor:
    """The tensor of a header entry, from a copy of its bytes. Not for tensors without elements."""
    tensor = torch.from_numpy(np.ndarray(spec.shape, IN_NUMPY[spec.dtype], bytearray(frame)))
    return as_dtype(tensor, spec) if spec.dtype in NOT_IN_NUMPY else tensor


def as_dtype(tensor: Tensor, spec: TensorSpec) -> Tensor:
    """The tensor of a dtype that was read as another one."""
    return tensor.view(torch.bfloat16) if spec.dtype == "bfloat16" else tensor != 0


def from_bytes_checked(spec: TensorSpec, frame: Any) -> tuple[Tensor, bool]:
    """The same, and whether its numbers are all finite, as `are_finite` tells."""
    numbers = bytearray(frame)
    tensor = torch.from_numpy(np.ndarray(spec.shape, IN_NUMPY[spec.dtype], numbers))
    if spec.dtype in NOT_IN_NUMPY:
        tensor = as_dtype(tensor, spec)
    return tensor, are_finite_bytes(numbers, spec.dtype)
