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

from learning_at_home.client.nested_call import Leaves, Values, flatten
from learning_at_home.project import LayerSpec
from learning_at_home.tensors.frames import DTYPES
from learning_at_home.wire.messages import Operation

_any_autocast: Callable[[], bool] = torch._C._is_any_autocast_enabled
_is_traced = torch.compiler.is_dynamo_compiling
_ModuleT = TypeVar("_ModuleT", bound="SwarmModule")


class SwarmModule(torch.nn.Module):
    """A module for x of the layer's dtype, or for what its schema says, whose subclass computes."""

    def __init__(self, owner: str, layer: LayerSpec) -> None:
        """`owner` begins the words of errors: who takes what."""
        super().__init__()
        self.layer: LayerSpec = layer
        self._owner = owner
        self._is_nested = layer.schema is not None
        self._dtype = DTYPES[layer.dtype]
        self._probe = torch.empty(0, dtype=self._dtype)  # goes where `model.to` would take weights
        self._is_converted = False
        self.train_experts: bool | None = None  # None: the subclass's own rule

    def _follow(self, original: SwarmModule) -> None:
        """Be as frozen as the module that this one is a copy of, and works beside."""
        self.train_experts = original.train_experts

    def forward(self, *inputs: Values, **named: Values) -> Values:
        """The output for x. Of the layer's dtype; after `model.to(dtype)` also of that one, under autocast of any.

        Of a layer with a schema: its nested output for its inputs, positional and named.
        """
        if _is_traced():
            return _untraced(self, inputs, named)
        if self._is_nested or named or len(inputs) != 1:
            return self._forward_nested(inputs, named)
        x = inputs[0]
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

    def _compute_nested(self, leaves: Leaves) -> Leaves:
        """The outputs for the inputs of a layer with a schema, both flat. Floating inputs must have its dtype."""
        raise NotImplementedError

    def _forward_nested(self, inputs: tuple[Values, ...], named: dict[str, Values]) -> Values:
        leaves = flatten(self._owner, self.layer, inputs, named)
        schema = self.layer.nested
        if schema is None:
            return self.forward(*leaves)
        device_type = leaves[0].device.type
        autocast = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
        if autocast and self._dtype != torch.float64:
            answered = torch.get_autocast_dtype(device_type)
            with torch.autocast(device_type, enabled=False):
                outputs = self._compute_nested(self._converted(leaves, (torch.float32, torch.float16, torch.bfloat16)))
            return schema.unflatten_output([output.to(answered) for output in outputs])
        if self._is_converted and any(leaf.dtype == self._probe.dtype for leaf in leaves):
            outputs = self._compute_nested(self._converted(leaves, (self._probe.dtype,)))
            return schema.unflatten_output([output.to(self._probe.dtype) for output in outputs])
        return schema.unflatten_output(self._compute_nested(leaves))

    def _converted(self, leaves: Leaves, dtypes: tuple[torch.dtype, ...]) -> Leaves:
        """Those of these dtypes in the layer's."""
        return tuple([leaf.to(self._dtype) if leaf.dtype in dtypes else leaf for leaf in leaves])

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


def _compute_untraced(module: SwarmModule, inputs: tuple[Values, ...], named: dict[str, Values]) -> Values:
    return module.forward(*inputs, **named)


# torch.compiler.disable would load the compiler for everybody; this loads it when a compiled model gets here.
_untraced: Callable[[SwarmModule, tuple[Values, ...], dict[str, Values]], Values] = _disable_dynamo(_compute_untraced)
