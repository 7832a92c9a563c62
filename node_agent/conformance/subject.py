"""The network that a conformance check is about: found by its name, made as a node would make it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import reduce
from importlib.metadata import entry_points

import torch
from torch import Tensor, nn

from learning_at_home.errors import ConfigError
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec
from learning_at_home.tensors.frames import DTYPES
from node_agent.experts.architectures import Build, build_expert, known_architectures, name_of, register_expert
from node_agent.experts.expert import Expert
from node_agent.experts.extensions import EXPERTS_GROUP, load_extension

PROJECT = "check"
UNREGISTERED = "checked"  # the architecture of a class that no decorator has named


@dataclass(frozen=True, slots=True)
class Subject:
    """An architecture, the layer for which it is tried, and the device."""

    layer: LayerSpec
    device: torch.device

    def expert(self, cell: int = 0) -> Expert:
        """A new one, with the weights that it would have on every node."""
        return Expert.create(ExpertUid(self.layer.prefix, (cell,)), self.layer, PROJECT, self.device)

    def module(self) -> nn.Module:
        """Only the network, on the CPU."""
        return build_expert(self.layer, PROJECT, ExpertUid(self.layer.prefix, (0,)))

    def draw(self, num_rows: int, seed: int = 0) -> Tensor:
        """Rows on the CPU, the same for the same seed."""
        random = torch.Generator().manual_seed(seed)
        dtype = DTYPES[self.layer.dtype]
        return torch.randn(num_rows, *self.layer.row_shape, generator=random, dtype=torch.float64).to(dtype)


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
