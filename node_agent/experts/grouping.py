"""Make the experts of a node, those of one layer as a group that can be computed together where that pays.

`auto` groups on CUDA devices, up to the size where a short measurement says that it pays; `on` groups whatever can be
grouped (for tests, and for who knows better); `off` groups nothing. A layer stays ungrouped when its architecture
cannot be stacked or takes several tensors, when the node hosts one expert of it, or when there is no memory for the
gradients of two.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec, ProjectRecord
from learning_at_home.wire.messages import Operation
from node_agent.experts.architectures import flop_per_row, weight_bytes
from node_agent.experts.calibration import OPERATIONS, UNBOUNDED_ROWS, rows_worth_grouping, seconds_on
from node_agent.experts.expert import Expert
from node_agent.experts.memory import GRADIENT_COPIES, free_device_bytes, measure, optimizer_copies
from node_agent.experts.nested_expert import NestedExpert
from node_agent.experts.portions import LAUNCH_FLOP, Bounds
from node_agent.experts.shared_chunk import SharedChunk
from node_agent.experts.stacks import ExpertStack, make_stacked, try_stack

log = logging.getLogger(__name__)

Grouping = Literal["auto", "on", "off"]
WEIGHT_COPIES = 3  # of each expert of a portion: its weights side by side, a gradient, and the sum of those before it


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """A stack, and up to how many rows of one expert it is to be used."""

    stack: ExpertStack
    longest: Mapping[Operation, int]
    positions: Mapping[str, int]  # uid -> place in the stack


def make_experts(
    uids: Sequence[ExpertUid],
    project: ProjectRecord,
    device: torch.device,
    grouping: Grouping,
    spare_bytes: int | None = None,
) -> tuple[list[Expert], list[Group]]:
    """The experts in the order of their uids, and their groups. Raises UnknownLayer or ConfigError.

    `spare_bytes`: of the device, beyond what `check_fits` counts; None: what will be free.
    """
    layers = {uid: project.layer(uid.prefix) for uid in uids}
    if grouping == "off" or (grouping == "auto" and device.type != "cuda"):
        return [make_expert(uid, layers[uid], project.id, device) for uid in uids], []
    alone = {uid: layer for uid, layer in layers.items() if layer.is_shared or layer.schema is not None}
    made = {uid: make_expert(uid, layer, project.id, device) for uid, layer in alone.items()}
    stackable: list[tuple[list[Expert], list[torch.Tensor]]] = []
    for layer in dict.fromkeys(layer for uid, layer in layers.items() if uid not in alone):
        of_layer = [uid for uid in uids if layers[uid] == layer]
        experts, stacked = make_stacked(of_layer, layer, project.id, device)
        made.update(zip(of_layer, experts, strict=True))
        stackable.append((experts, stacked))
    if spare_bytes is None:
        spare_bytes = bytes_left(made.values(), device)
    groups = [_try_group(experts, stacked, grouping, spare_bytes) for experts, stacked in stackable]
    return [made[uid] for uid in uids], [group for group in groups if group is not None]


def make_expert(uid: ExpertUid, layer: LayerSpec, project: str, device: torch.device) -> Expert:
    """The expert of one cell, of the kind that its layer needs. Raises ConfigError."""
    if layer.is_shared:
        return SharedChunk.create(uid, layer, project, device)
    return (Expert if layer.schema is None else NestedExpert).create(uid, layer, project, device)


def bytes_left(experts: Iterable[Expert], device: torch.device) -> int:
    """What will be free of the device's memory when these have their optimizers' state."""
    to_come = sum(optimizer_copies(expert.layer) * weight_bytes(expert.layer) for expert in experts)
    return free_device_bytes(device) - to_come


def bounds_within(layer: LayerSpec, spare_bytes: int) -> Bounds:
    """What a grouped product of this layer may take of so many bytes: half for weights, half for rows."""
    weights_bytes = weight_bytes(layer)
    row_bytes = measure(layer, 1).passing_bytes - GRADIENT_COPIES * weights_bytes
    half = max(0, spare_bytes // 2)
    return Bounds(
        experts=half // max(1, WEIGHT_COPIES * weights_bytes),
        rows=half // max(1, row_bytes),
        launch_rows=LAUNCH_FLOP / max(1, flop_per_row(layer)),
    )


def _try_group(
    experts: Sequence[Expert], stacked: Sequence[torch.Tensor], grouping: Grouping, spare_bytes: int
) -> Group | None:
    layer, device = experts[0].layer, experts[0].device
    bounds = bounds_within(layer, spare_bytes)
    stack = try_stack(experts, stacked, bounds) if bounds.experts > 1 and bounds.rows > 1 else None
    if stack is None:
        return None
    longest: dict[Operation, int] = dict.fromkeys(OPERATIONS, UNBOUNDED_ROWS)
    if grouping == "auto":
        longest = rows_worth_grouping(stack, seconds_on(device))
        log.info("layer %s: grouped products pay up to %s rows of an expert", layer.prefix, longest)
    longest["eval_forward"] = longest["forward"]
    positions = {str(expert.uid): position for position, expert in enumerate(experts)}
    return Group(stack, longest, positions)
