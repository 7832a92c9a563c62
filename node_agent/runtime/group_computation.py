"""Compute batches of several experts of one layer as grouped products, so that no request in them can harm another.

What goes wrong in company is done again alone: when a grouped product fails or a number in it is not finite, the
experts that it concerns are computed one at a time, as computation.py does, which finds the guilty requests. Each
request is clipped on its own; each expert with work takes one step, those without are not touched. Runs in one thread
at a time.
Policy: docs/decisions/0007-grouped-experts.md.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learning_at_home.errors import LearningAtHomeError
from learning_at_home.tensors.finite import is_finite
from learning_at_home.wire.messages import Operation
from node_agent.experts.expert import Expert, apply_gradients
from node_agent.experts.gradients import CLIP_EPSILON, Gradients
from node_agent.experts.grouping import Group
from node_agent.experts.portions import Portion, plan
from node_agent.runtime.computation import compute
from node_agent.runtime.outcomes import Outcome, explained
from node_agent.runtime.transfers import Padding, to_cpu, to_device

log = logging.getLogger(__name__)

Request = Sequence[Tensor]  # its tensors, on the CPU

# A experts of a portion, L rows of the longest


@dataclass(frozen=True, slots=True)
class Lane:
    """The requests of one expert."""

    expert: Expert
    position: int  # in the stack
    requests: Sequence[Request]

    @property
    def rows(self) -> int:
        return _count_rows(self.requests)


def compute_group(
    group: Group | None, operation: Operation, batches: Sequence[tuple[Expert, Sequence[Request]]]
) -> list[list[Outcome]]:
    """Per batch, one outcome per request, in their order. `group`: that of all these experts."""
    found: Mapping[int, list[Outcome]] = {}
    if group is not None and len(batches) > 1:
        lanes = [Lane(expert, group.positions[str(expert.uid)], requests) for expert, requests in batches if requests]
        lanes = [lane for lane in lanes if lane.rows <= group.longest[operation]]
        if len(lanes) > 1:
            if operation == "eval_forward":
                with group.stack.experts[0].evaluating():  # whose network computes for all
                    found = _forward(group, lanes)
            else:
                found = _forward(group, lanes) if operation == "forward" else _backward(group, lanes)
        found = {id(group.stack.experts[position]): outcomes for position, outcomes in found.items()}
    return [
        found[id(expert)] if id(expert) in found else compute(expert, operation, requests)
        for expert, requests in batches
    ]


def _forward(group: Group, lanes: Sequence[Lane]) -> dict[int, list[Outcome]]:
    """By position, the outcomes of each lane that went well."""
    outcomes: dict[int, list[Outcome]] = {}
    requests = {lane.position: lane.requests for lane in lanes}
    for portion in plan({lane.position: lane.rows for lane in lanes}, group.stack.bounds):
        packed = Packed(group, portion, requests)
        try:
            answers = packed.rows_of(group.stack.forward(portion, packed.padded(0)))
            sound = is_finite(answers)
            parts = packed.by_position(to_cpu(answers))
        except BaseException as error:  # noqa: BLE001 - an edge: each lane then meets its own error, alone
            _tell(group, error)
            continue
        for position, own in parts.items():
            if sound or all(is_finite(rows) for rows in own):
                outcomes[position] = list(own)
    return outcomes


def _backward(group: Group, lanes: Sequence[Lane]) -> dict[int, list[Outcome]]:
    """By position, the outcomes of each lane that went well; its expert has stepped."""
    outcomes: dict[int, list[Outcome]] = {}
    lanes = sorted(lanes, key=lambda lane: lane.position)
    for start in range(0, len(lanes), group.stack.bounds.experts):
        outcomes.update(_backward_at_once(group, lanes[start : start + group.stack.bounds.experts]))
    return outcomes


def _backward_at_once(group: Group, lanes: Sequence[Lane]) -> dict[int, list[Outcome]]:
    totals: dict[int, Gradients] = {}
    of_rows: dict[int, list[Outcome]] = {lane.position: [] for lane in lanes}
    failed: set[int] = set()
    for requests in _rounds(lanes):
        requests = {position: own for position, own in requests.items() if position not in failed}
        for portion in plan({position: _count_rows(own) for position, own in requests.items()}, group.stack.bounds):
            found = _gradients(group, portion, requests)
            for position in requests.keys() & set(portion.positions):
                if position not in found:
                    failed.add(position)
                    continue
                gradients, of_requests = found[position]
                totals[position] = totals[position].plus(gradients) if position in totals else gradients
                of_rows[position] += of_requests
    sound = [lane for lane in lanes if lane.position not in failed and _can_step(lane, totals[lane.position])]
    try:
        apply_gradients(
            [lane.expert for lane in sound],
            [totals[lane.position] for lane in sound],
            [lane.rows for lane in sound],
        )
    except BaseException as error:  # noqa: BLE001 - the edge; some may have stepped, so nothing is done again
        return {lane.position: [explained(lane.expert, error)] * len(lane.requests) for lane in sound}
    return {lane.position: of_rows[lane.position] for lane in sound}


def _rounds(lanes: Sequence[Lane]) -> Iterator[dict[int, Sequence[Request]]]:
    """By position, the requests whose gradients may be one: all of a lane, or one after another to be clipped each."""
    expert = lanes[0].expert
    if expert.clip_norm is None or not expert.trained:
        yield {lane.position: lane.requests for lane in lanes}
        return
    for turn in range(max(len(lane.requests) for lane in lanes)):
        yield {lane.position: [lane.requests[turn]] for lane in lanes if turn < len(lane.requests)}


def _gradients(
    group: Group, portion: Portion, requests: Mapping[int, Sequence[Request]]
) -> dict[int, tuple[Gradients, list[Tensor]]]:
    """By position, of those where every number is finite: the parameters' clipped, the rows' by request on the CPU."""
    packed = Packed(group, portion, requests)
    try:
        of_rows_ALD, of_parameters = group.stack.gradients(portion, packed.padded(0), packed.padded(1))
        norms_A = _clip(of_parameters, group.stack.experts[0].clip_norm, len(portion.positions))
        sums_A = of_rows_ALD.flatten(1).sum(1)
        numbers = torch.stack([sums_A.double()] if norms_A is None else [sums_A.double(), norms_A.double()]).tolist()
        of_rows = packed.by_position(to_cpu(packed.rows_of(of_rows_ALD)))
    except BaseException as error:  # noqa: BLE001 - an edge: each lane then meets its own error, alone
        _tell(group, error)
        return {}
    of_each = [None if of_all is None else of_all.unbind() for of_all in of_parameters]
    found = {}
    for slot, position in enumerate(portion.positions):
        if position in of_rows and all(math.isfinite(of_all[slot]) for of_all in numbers):
            own = tuple([None if of_all is None else of_all[slot] for of_all in of_each])
            norm = 0.0 if norms_A is None else numbers[1][slot]
            found[position] = Gradients(of_rows_ALD[slot], own, norm), of_rows[position]
    return found


def _clip(of_parameters: Sequence[Tensor | None], clip_norm: float | None, num_experts: int) -> Tensor | None:
    """Scale each expert's gradients [A, ...] down to the norm, in place. Their norms then [A]; None without any."""
    present = [of_all for of_all in of_parameters if of_all is not None]
    if not present:
        return None
    parts = [torch.linalg.vector_norm(of_all.reshape(num_experts, -1), dim=1) for of_all in present]
    norms_A: Tensor = torch.linalg.vector_norm(torch.stack(parts), dim=0)
    if clip_norm is None:
        return norms_A
    scales_A = (clip_norm / (norms_A + CLIP_EPSILON)).clamp(max=1.0)
    for of_all in present:
        of_all.mul_(scales_A.view(-1, *[1] * (of_all.ndim - 1)))
    return norms_A * scales_A


def _can_step(lane: Lane, gradients: Gradients) -> bool:
    try:
        lane.expert.check_can_step(gradients)
    except LearningAtHomeError:
        return False
    return True


def _tell(group: Group, error: BaseException) -> None:
    log.info(
        "layer %s: a grouped product failed (%s); its experts compute one at a time", group.stack.layer.prefix, error
    )


class Packed:
    """The requests of a portion, in the order of its positions."""

    def __init__(self, group: Group, portion: Portion, requests: Mapping[int, Sequence[Request]]) -> None:
        self._device = group.stack.experts[0].device
        self._requests = {position: requests[position] for position in portion.positions if position in requests}
        num_rows = [_count_rows(requests.get(position, ())) for position in portion.positions]
        self._padding = Padding(num_rows, portion.longest, self._device)

    def padded(self, index: int) -> Tensor:
        """The tensors of that index of all requests: [A, L, ...] on the device."""
        parts = [tensors[index] for own in self._requests.values() for tensors in own]
        return self._padding.pad(to_device(parts, self._device))

    def rows_of(self, padded_ALD: Tensor) -> Tensor:
        """The rows without the padding."""
        return self._padding.strip(padded_ALD)

    def by_position(self, rows: Tensor) -> dict[int, list[Tensor]]:
        """Those of each request, of each position with work."""
        sizes = [len(tensors[0]) for own in self._requests.values() for tensors in own]
        parts = iter(rows.split_with_sizes(sizes))
        return {position: [next(parts) for _ in own] for position, own in self._requests.items()}


def _count_rows(requests: Sequence[Request]) -> int:
    return sum([len(tensors[0]) for tensors in requests])
