"""How a layer's network is called, and what it must return. Pure but for torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from learning_at_home.errors import SpecMismatch
from learning_at_home.project import LayerSpec
from learning_at_home.tensors.frames import DTYPES

Leaves = tuple[Tensor, ...]  # the tensors of some rows, flat, in the order of the layer's schema


def run_network(owner: str, layer: LayerSpec, module: nn.Module, leaves: Sequence[Tensor]) -> Leaves:
    """The outputs of a layer's network, whatever it takes. Raises SpecMismatch when they are not what the layer says.

    `owner` begins the error's words.
    """
    if layer.nested is None:
        found = [module(leaves[0])]
    else:
        args, kwargs = layer.nested.unflatten_inputs(leaves)
        found = layer.nested.flatten_output(owner, module(*args, **kwargs))
    num_rows = len(leaves[0])
    for leaf, output in zip(layer.outputs, found, strict=True):
        wanted = (num_rows, *leaf.shape)
        if not isinstance(output, Tensor) or output.shape != wanted or output.dtype != DTYPES[leaf.dtype]:
            seen = _shown(output, num_rows) if isinstance(output, Tensor) else type(output).__name__
            raise SpecMismatch(f"{owner}: output {leaf.path} is {seen}; it must be {leaf}")
    return tuple(found)


def zero_inputs(layer: LayerSpec, num_rows: int, device: torch.device | None = None) -> Leaves:
    """Rows of zeros for each input of a layer."""
    return tuple(torch.zeros(num_rows, *leaf.shape, dtype=DTYPES[leaf.dtype], device=device) for leaf in layer.inputs)


def _shown(tensor: Tensor, num_rows: int) -> str:
    """For people: float32[*, 64], where it has as many rows as it should."""
    sizes = list(map(str, tensor.shape))
    if sizes[:1] == [str(num_rows)]:
        sizes[0] = "*"
    return f"{str(tensor.dtype).removeprefix('torch.')}[{', '.join(sizes)}]"
