"""What a tensor must look like before it is sent to an expert.

The caller's mistakes are named here, at no cost to the network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learning_at_home.errors import BatchTooLarge, ConfigError, EmptyBatch, NonFiniteTensor, SpecMismatch, UsageError
from learning_at_home.project import LayerSpec
from learning_at_home.tensors.finite import is_finite
from learning_at_home.tensors.frames import DTYPES


def check_is_expert(layer: LayerSpec) -> None:
    """Raises ConfigError for a layer of shared parameters, which has no experts."""
    if layer.is_shared:
        raise ConfigError(
            f"layer {layer.prefix} holds parameters that trainers share: use swarm.shared({layer.prefix!r}, model)"
        )


def check_rows(owner: str, layer: LayerSpec, x: Tensor) -> None:
    """Raises SpecMismatch, EmptyBatch or NonFiniteTensor naming `owner` (a uid or layer) and what it takes."""
    check_specs(owner, layer, x)
    check_finite(owner, x)


def check_specs(owner: str, layer: LayerSpec, x: Tensor) -> None:
    """What can be told without reading the numbers. Raises SpecMismatch or EmptyBatch."""
    if not isinstance(x, Tensor):
        raise SpecMismatch(f"{owner}: input 0 is a {type(x).__name__}; {_takes(layer)}, as a torch.Tensor")
    shape = x.shape
    if not shape or shape[1:] != layer.row_shape or x.dtype != DTYPES[layer.dtype] or x.layout != torch.strided:
        raise SpecMismatch(f"{owner}: input 0 is {seen(x)}; {_takes(layer)}")
    if not shape[0]:
        raise EmptyBatch(f"{owner}: input 0 is {seen(x)}, a batch of no rows; {_takes(layer)} with at least one row")


def check_finite(owner: str, x: Tensor, path: str = "0") -> None:
    """Raises NonFiniteTensor."""
    if not is_finite(x):
        raise NonFiniteTensor(f"{owner}: input {path} ({seen(x)}) holds NaN or infinity")


def check_one_request(owner: str, layer: LayerSpec, x: Tensor) -> None:
    """Raises BatchTooLarge when the rows do not fit one request."""
    if len(x) > layer.max_rows:
        raise BatchTooLarge(
            f"{owner}: a batch of {len(x):,} rows; one request takes up to {layer.max_rows:,} rows of this layer: "
            "split the batch (DMoE does it by itself)"
        )


def check_gradient(owner: str, gradient: Tensor) -> None:
    """Raises NonFiniteTensor: a NaN must never reach the weights of an expert that others train too."""
    if not is_finite(gradient):
        raise NonFiniteTensor(f"{owner}: the gradient of its output holds NaN or infinity; nothing was sent")


def check_first_order(owner: str) -> None:
    """Raises UsageError inside a backward that shall itself be differentiated: the experts' hosts cannot do that."""
    if torch.is_grad_enabled():
        raise UsageError(
            f"{owner}: second derivatives through remote experts do not exist; call backward without create_graph=True"
        )


def _takes(layer: LayerSpec) -> str:
    return f"the expert takes {layer.dtype}[{', '.join(['*', *map(str, layer.row_shape)])}]"


def seen(x: Tensor) -> str:
    """For people: float32[3, 64]."""
    return f"{str(x.dtype).removeprefix('torch.')}[{', '.join(map(str, x.shape))}]"
