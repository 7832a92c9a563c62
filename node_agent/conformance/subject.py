"""The network that a conformance check is about: found by its name, made as a node would make it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from importlib.metadata import entry_points

import torch
from torch import nn

from learning_at_home.errors import ConfigError
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec
from learning_at_home.schema import Leaf
from learning_at_home.tensors.frames import DTYPES
from node_agent.experts.architectures import Build, build_expert, known_architectures, name_of, register_expert
from node_agent.experts.expert import Expert
from node_agent.experts.extensions import EXPERTS_GROUP, load_extension
from node_agent.experts.grouping import make_expert
from node_agent.experts.nested_expert import NestedExpert
from node_agent.experts.networks import Leaves, run_network

PROJECT = "check"
UNREGISTERED = "checked"  # the architecture of a class that no decorator has named


@dataclass(frozen=True, slots=True)
class Subject:
    """An architecture, the layer for which it is tried, and the device."""

    layer: LayerSpec
    device: torch.device

    def expert(self, cell: int = 0) -> Expert:
        """A new one, with the weights that it would have on every node."""
        return make_expert(ExpertUid(self.layer.prefix, (cell,)), self.layer, PROJECT, self.device)

    def module(self) -> nn.Module:
        """Only the network, on the CPU."""
        return build_expert(self.layer, PROJECT, ExpertUid(self.layer.prefix, (0,)))

    def draw(self, num_rows: int, seed: int = 0) -> Leaves:
        """Inputs on the CPU, the same for the same seed: normal floats, and whole numbers that are 0 or 1."""
        return _drawn(self.layer.inputs, num_rows, seed)

    def draw_gradients(self, num_rows: int, seed: int = 1) -> Leaves:
        """Of the outputs."""
        return _drawn(self.layer.outputs, num_rows, seed)

    def on_device(self, leaves: Leaves, *, asking: bool = False) -> Leaves:
        """A copy; where it is `asking`, its floats ask for their gradients."""
        copies = tuple([leaf.to(self.device, copy=True) for leaf in leaves])
        return tuple([copy.requires_grad_(asking and copy.is_floating_point()) for copy in copies])

    def run(self, expert: Expert, leaves: Leaves, seeded_by: Leaves | None = None) -> Leaves:
        """What the expert's network makes of inputs on its device, as autograd records it."""
        with expert.numbers_for(*(_on_cpu(leaves) if seeded_by is None else seeded_by)):
            return run_network(self.layer.architecture, self.layer, expert.module, leaves)

    def forward(self, expert: Expert, leaves: Leaves, seeded_by: Leaves | None = None) -> Leaves:
        """What the expert answers, on the CPU."""
        with expert.numbers_for(*(leaves if seeded_by is None else seeded_by)):
            given = self.on_device(leaves)
            outputs = expert.outputs(given) if isinstance(expert, NestedExpert) else (expert.forward(given[0]),)
        return _on_cpu(outputs)

    def gradients(self, expert: Expert, leaves: Leaves, output_gradients: Leaves) -> Leaves:
        """Of the float inputs, as the expert answers a backward, on the CPU."""
        with expert.numbers_for(*leaves):
            given, pulled = self.on_device(leaves), self.on_device(output_gradients)
            if isinstance(expert, NestedExpert):
                return _on_cpu(expert.gradients_of(given, pulled)[0])
            return _on_cpu((expert.gradients(given[0], pulled[0]).of_rows,))


def _drawn(wanted: Sequence[Leaf], num_rows: int, seed: int) -> Leaves:
    random = torch.Generator().manual_seed(seed)
    drawn = []
    for leaf in wanted:
        shape = (num_rows, *leaf.shape)
        if leaf.is_float:
            drawn.append(torch.randn(shape, generator=random, dtype=torch.float64).to(DTYPES[leaf.dtype]))
        else:
            drawn.append(torch.randint(2, shape, generator=random).to(DTYPES[leaf.dtype]))
    return tuple(drawn)


def _on_cpu(leaves: Leaves) -> Leaves:
    return tuple([leaf.detach().cpu() for leaf in leaves])


def find_architecture_name(target: str) -> str:
    """The name in the registry of `module:Class`, or of an architecture that is built in or comes with a package.

    Runs the code that it finds: for who wrote it, not for strangers' packages. Raises ConfigError.
    """
    if ":" not in target:
        packages = [entry.dist.name for entry in entry_points(group=EXPERTS_GROUP, name=target) if entry.dist]
        load_extension(EXPERTS_GROUP, target, known_architectures, packages, f"architecture {target!r}")
        return target
    build = _import(target)
    name = name_of(build)
    if name is None:
        register_expert(UNREGISTERED)(build)
    return name or UNREGISTERED


def _import(target: str) -> Build:
    module_name, _, path = target.partition(":")
    try:
        found: object = reduce(getattr, path.split("."), importlib.import_module(module_name))
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{target} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ConfigError(f"{target} is no class and no function: give one that makes a network from a LayerSpec")
    return found
