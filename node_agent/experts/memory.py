"""How many bytes experts take on a device, and whether they fit, before any is made.

Weights and optimizer state stay for every expert; gradients and activations exist for one batch of one expert at a
time, because one thread computes one batch after another. Measured by a forward of a row or two, so that it holds for
every architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from learning_at_home.errors import ConfigError
from learning_at_home.project import LayerSpec
from node_agent.experts.architectures import build_checked, weight_bytes
from node_agent.experts.networks import run_network, zero_inputs
from node_agent.experts.randomness import numbers_from
from node_agent.experts.sizes import shown
from node_agent.experts.update_rules import make_rule

GRADIENT_COPIES = 2
MARGIN = 0.9  # of what is free: allocators round up, and the machine's owner wants to go on working


@dataclass(frozen=True, slots=True)
class ExpertMemory:
    """Bytes of one expert of a layer."""

    lasting_bytes: int  # weights, optimizer state and gathered gradients
    passing_bytes: int  # gradients, activations and rows while its largest batch is computed


def measure(layer: LayerSpec, max_rows: int) -> ExpertMemory:
    """What one expert of this layer takes. Raises ConfigError when the architecture does not fit the layer."""
    weights_bytes = weight_bytes(layer)
    if weights_bytes > free_device_bytes(torch.device("cpu")):
        raise ConfigError(
            f"layer {layer.prefix}: one expert's weights take {shown(weights_bytes)}, more than this machine has"
        )
    module = build_checked(layer)
    rows_bytes = max_rows * layer.row_bytes
    saved_bytes = saved_bytes_per_row(module, layer) * max_rows
    # Each saved activation gets a gradient of its size; rows come in, and go out, with a gradient each. The weights'
    # gradients are there twice: of one request, and the sum over those before it.
    return ExpertMemory(
        lasting_bytes=weights_bytes * (1 + optimizer_copies(layer)),
        passing_bytes=GRADIENT_COPIES * weights_bytes + 2 * saved_bytes + 4 * rows_bytes,
    )


def optimizer_copies(layer: LayerSpec) -> int:
    """The optimizer's state and gathered gradients, in multiples of the weights. Raises ConfigError."""
    return len(make_rule(layer.optimizer).state) + layer.optimizer.gathers


def saved_bytes_per_row(module: torch.nn.Module, layer: LayerSpec) -> int:
    """Bytes that autograd keeps of one row's forward until its backward; no less, if it keeps one tensor twice."""

    parameter = next(module.parameters())

    def saved(num_rows: int) -> int:
        seen: dict[int, Tensor] = {id(parameter): parameter for parameter in module.parameters()}
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            if id(tensor) not in seen and not isinstance(tensor, torch.nn.Parameter):
                seen[id(tensor)] = tensor
                total += tensor.numel() * tensor.element_size()
            return tensor.detach()  # itself it might be the output, which holds this: a circle that nobody frees

        leaves = zero_inputs(layer, num_rows, parameter.device)
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with numbers_from(0, parameter.device), hooks:  # a forward that is under way goes on with its own numbers
            asking = [leaf.requires_grad_(leaf.is_floating_point()) for leaf in leaves]
            run_network(f"layer {layer.prefix}", layer, module, asking)
        return total

    return max(
        0, saved(2) - saved(1)
    )  # the difference leaves out what does not grow with the rows (transposed weights)


def total_bytes(kinds: Sequence[tuple[ExpertMemory, int]]) -> int:
    """Bytes of `count` experts of each kind together."""
    lasting = sum(memory.lasting_bytes * count for memory, count in kinds)
    return lasting + max((memory.passing_bytes for memory, count in kinds if count), default=0)


@dataclass(frozen=True, slots=True)
class Fit:
    """What the experts that a node is about to make take of its device."""

    needed_bytes: int
    free_bytes: int
    would_fit: int  # experts of these layers, taken evenly

    def __str__(self) -> str:
        return f"{shown(self.needed_bytes)} of {shown(self.free_bytes)}; {self.would_fit:,} would fit"


def check_fits(layers: Sequence[tuple[LayerSpec, int]], max_rows: int, free_bytes: int, device: str) -> Fit:
    """What the given number of experts of each layer takes. Raises ConfigError that says how many do fit."""
    kinds = [(measure(layer, min(max_rows, layer.max_rows)), count) for layer, count in layers]
    fit = Fit(total_bytes(kinds), free_bytes, count_fitting([memory for memory, _ in kinds], free_bytes))
    if fit.needed_bytes <= free_bytes:
        return fit
    wanted = sum(count for _, count in layers)
    raise ConfigError(
        f"{wanted} experts take {shown(fit.needed_bytes)}, but {device} has {shown(free_bytes)} for them; "
        f"{min(fit.would_fit, wanted)} fit. Host fewer (--experts, --max-experts), take smaller batches (--max-rows), "
        f"or allow more (--memory-limit)"
    )


def count_fitting(kinds: Sequence[ExpertMemory], free_bytes: int) -> int:
    """How many experts fit, when they are taken evenly of all kinds."""
    if not kinds:
        return 0
    left = free_bytes - max(memory.passing_bytes for memory in kinds)
    each = sum(memory.lasting_bytes for memory in kinds) / len(kinds)
    return max(0, int(left / max(1.0, each)))


def free_device_bytes(device: torch.device) -> int:
    """What experts may take on this device now, with a margin left for others."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return int(free * MARGIN)
    return int(min(psutil.virtual_memory().available, _cgroup_bytes_left()) * MARGIN)


def _cgroup_bytes_left() -> int:
    """What a container's memory limit leaves; a huge number where there is none."""
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return 1 << 62
    return max(0, limit - used)
