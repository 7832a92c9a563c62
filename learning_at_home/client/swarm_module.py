"""What PyTorch expects of a module, for one whose weights lie on other machines.

`eval()` and `requires_grad_(False)` freeze the remote experts, `eval()` turns their dropout off, autocast and
`model.to(dtype)` convert what goes in and comes out, `torch.compile` leaves it to Python. Which numbers are computed,
and where, the subclasses know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from learning_at_home.tensors.frames import DTYPES
from learning_at_home.wire.messages import Operation

_any_autocast: Callable[[], bool] = torch._C._is_any_autocast_enabled
_is_traced = torch.compiler.is_dynamo_compiling
_ModuleT = TypeVar("_ModuleT", bound="SwarmModule")


class SwarmModule(torch.nn.Module):
    """A module for x of the layer's dtype, whose subclass computes."""

    def __init__(self, dtype_name: str) -> None:
        super().__init__()
        self._dtype = DTYPES[dtype_name]
        self._probe = torch.empty(0, dtype=self._dtype)  # goes where `model.to` would take weights
        self._is_converted = False
        self.train_experts: bool | None = None  # None: the subclass's own rule

    def _follow(self, original: SwarmModule) -> None:
        """Be as frozen as the module that this one is a copy of, and works beside."""
        self.train_experts = original.train_experts

    def forward(self, x: Tensor) -> Tensor:
        """The output for x. Of the layer's dtype; after `model.to(dtype)` also of that one, under autocast of any."""
        if _is_traced():
            return _untraced(self, x)
        if self._is_converted or _any_autocast():
            return self._convert_and_compute(x)
        return self._compute(x)

    @property
    def trains_experts(self) -> bool:
        """Whether a backward through a forward that is made now lets the experts learn."""
        raise NotImplementedError

    @property
    def forward_operation(self) -> Operation:
        """What is asked of the experts now: in evaluation mode their dropout is off, as this module's own would be."""
        return "forward" if self.training else "eval_forward"

    @property
    def backward_operation(self) -> Operation:
        """What a forward that is made now asks of the experts on its backward."""
        if self.trains_experts:
            return "backward"
        return "gradient" if self.training else "eval_gradient"

    def _compute(self, x: Tensor) -> Tensor:
        """The output for x, which must have the layer's dtype."""
        raise NotImplementedError

    def _convert_and_compute(self, x: Tensor) -> Tensor:
        device = getattr(x, "device", None)
        if device is None:
            return self._compute(x)  # which refuses what is no tensor
        device_type = device.type
        autocast = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
        if autocast and x.is_floating_point() and torch.float64 not in (x.dtype, self._dtype):
            # As in a local mixture of Linears: the output has autocast's dtype. The gate's scores keep all their bits.
            with torch.autocast(device_type, enabled=False):
                return self._compute(x.to(self._dtype)).to(torch.get_autocast_dtype(device_type))
        if self._is_converted and x.dtype == self._probe.dtype:
            return self._compute(x.to(self._dtype)).to(x.dtype)
        return self._compute(x)

    def _apply(self: _ModuleT, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _ModuleT:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._probe = fn(self._probe)
        self._is_converted = self._probe.dtype != self._dtype
        return self


def _compute_untraced(module: SwarmModule, x: Tensor) -> Tensor:
    return module.forward(x)


# torch.compiler.disable would load the compiler for everybody; this loads it when a compiled model gets here.
_untraced: Callable[[SwarmModule, Tensor], Tensor] = _disable_dynamo(_compute_untraced)
