"""A hosted expert of several tensors: what goes in and out is flat, in the order of its layer's schema.

Its network is called with the nested structure that the schema says, and must return the one that it says. The rest is
any expert's: optimizer, clipping, gathering. Its forwards are not remembered, and it is never grouped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from learning_at_home.errors import ConfigError, ExpertFailed, SpecMismatch
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec
from learning_at_home.tensors.finite import is_finite
from node_agent.experts.expert import Expert
from node_agent.experts.gradients import Gradients, in_own_memory, total_norm
from node_agent.experts.networks import Leaves, run_network
from node_agent.experts.pullback import pull_back_all

_NO_ROWS = torch.empty(0)


class NestedExpert(Expert):
    """An expert whose layer has a schema, on its device."""

    def __init__(self, uid: ExpertUid, layer: LayerSpec, module: nn.Module, device: torch.device) -> None:
        super().__init__(uid, layer, module, device)
        if layer.nested is None:
            raise ConfigError(f"layer {layer.prefix} has no schema")
        self.nested = layer.nested

    def outputs(self, leaves: Leaves) -> Leaves:
        """The network's outputs, which may hold NaN or infinity. Raises ExpertFailed when they are others than it must
        return. A random network is to be called within `numbers_for`."""
        if not self.is_random:
            with torch.inference_mode():
                return self._run(leaves)
        recorded = self._run(_asking(leaves))  # some kernels draw otherwise where no gradient is wanted
        return tuple([output.detach() for output in recorded])

    def gradients_of(self, leaves: Leaves, output_gradients: Leaves) -> tuple[Leaves, Gradients]:
        """Of the float inputs in their order, and of the parameters; changes nothing.

        Raises ExpertFailed when one is not finite.
        """
        asking, found = self._pulled_back_all(leaves, output_gradients, self.trained)
        of_inputs = _or_zeros(asking, found)
        of_parameters = in_own_memory(found[len(asking) :], *leaves, *of_inputs, *output_gradients)
        norm = total_norm(of_parameters)
        if not math.isfinite(norm) or not all(map(is_finite, of_inputs)):
            raise ExpertFailed(f"{self.uid}: the gradient is not finite for these inputs; no step was taken")
        return of_inputs, Gradients(_NO_ROWS, of_parameters, norm)

    def gradients_of_inputs(self, leaves: Leaves, output_gradients: Leaves) -> Leaves:
        """Of the float inputs in their order; changes nothing. They may hold NaN or infinity."""
        return _or_zeros(*self._pulled_back_all(leaves, output_gradients, ()))

    def _pulled_back_all(
        self, leaves: Leaves, output_gradients: Leaves, parameters: Sequence[Tensor]
    ) -> tuple[Leaves, Sequence[Tensor | None]]:
        """The float inputs, and the gradients of them and of these parameters."""
        leaves = _asking(leaves)
        asking = tuple([leaf for leaf in leaves if leaf.requires_grad])
        return asking, pull_back_all(self._run(leaves), output_gradients, [*asking, *parameters])

    def _run(self, leaves: Leaves) -> Leaves:
        try:
            return run_network(str(self.uid), self.layer, self.module, leaves)
        except SpecMismatch as error:  # not the caller's mistake
            raise ExpertFailed(error.message) from error


def _asking(leaves: Leaves) -> Leaves:
    """The same, the floating ones asking for their gradient."""
    return tuple([leaf.detach().requires_grad_(leaf.is_floating_point()) for leaf in leaves])


def _or_zeros(asking: Leaves, found: Sequence[Tensor | None]) -> Leaves:
    return tuple(
        [
            torch.zeros_like(leaf) if gradient is None else gradient.detach()
            for leaf, gradient in zip(asking, found, strict=False)
        ]
    )
