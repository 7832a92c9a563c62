"""From the gradient of a network's output to those of what went in.

torch.autograd.grad with `grad_outputs` imports sympy for a check of shapes: half a second and 500 modules. So the
engine is asked itself, as torch does after that check; a torch without that entrance gets a product whose gradient is
the same, exactly (it costs 30 us more for one row).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_engine = getattr(torch.autograd.Variable, "_execution_engine", None)


def pull_back(output: Tensor, output_gradient: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradient of each input; None where the output does not depend on it. Both outputs have one shape."""
    if not output.requires_grad:
        return (None,) * len(inputs)
    if output.shape != output_gradient.shape:
        raise ValueError(f"the output is {tuple(output.shape)}, its gradient {tuple(output_gradient.shape)}")
    if _engine is None:
        return pull_back_by_product(output, output_gradient, inputs)
    found: tuple[Tensor | None, ...] = _engine.run_backward(
        (output,), (output_gradient,), False, False, tuple(inputs), True, accumulate_grad=False
    )
    return found


def pull_back_by_product(
    output: Tensor, output_gradient: Tensor, inputs: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """The same by public means."""
    product = torch.dot(output.reshape(-1), output_gradient.reshape(-1))
    return tuple(torch.autograd.grad(product, list(inputs), allow_unused=True))


def pull_back_all(
    outputs: Sequence[Tensor], output_gradients: Sequence[Tensor], inputs: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """The same of several outputs together."""
    pairs = [pair for pair in zip(outputs, output_gradients, strict=True) if pair[0].requires_grad]
    if not pairs or not inputs:
        return (None,) * len(inputs)
    if _engine is None:
        product = torch.stack([torch.dot(*(tensor.reshape(-1) for tensor in pair)) for pair in pairs]).sum()
        return tuple(torch.autograd.grad(product, list(inputs), allow_unused=True))
    found: tuple[Tensor | None, ...] = _engine.run_backward(
        tuple([output for output, _ in pairs]),
        tuple([gradient for _, gradient in pairs]),
        False,
        False,
        tuple(inputs),
        True,
        accumulate_grad=False,
    )
    return found
