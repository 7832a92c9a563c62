"""Compute one batch of an expert with a schema so that no request in it can harm another: computation.py's rules.

Each input's rows of all requests stand one after the other, as one tensor does there. A backward whose requests have to
be clipped each is computed one request at a time: clipping.py knows networks of one input.
Runs in one thread at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from learning_at_home.errors import ExpertFailed, LearningAtHomeError
from learning_at_home.tensors.finite import is_finite
from learning_at_home.wire.messages import Operation
from node_agent.experts.gradients import Gradients
from node_agent.experts.nested_expert import NestedExpert
from node_agent.experts.networks import Leaves
from node_agent.runtime.outcomes import Outcome, explained, in_halves, not_finite
from node_agent.runtime.transfers import to_cpu, to_device

_Found = tuple[Leaves, Gradients]  # of the inputs, on the CPU, and of the parameters


def compute_nested(expert: NestedExpert, operation: Operation, requests: Sequence[Leaves]) -> list[Outcome]:
    """One outcome per request, in their order, for forward, backward and gradient."""
    if operation == "forward":
        return _forward(expert, requests)
    if operation == "gradient":
        return _gradients_of_inputs(expert, requests)
    return _backward(expert, requests)


def _forward(expert: NestedExpert, requests: Sequence[Leaves]) -> list[Outcome]:
    if len(requests) <= 1 or expert.is_random:
        return [_forward_of_one(expert, leaves) for leaves in requests]
    try:
        outputs = expert.outputs(_joined(expert, requests))
        sound = all(map(is_finite, outputs))
        parts = _parted(outputs, requests)
    except BaseException:  # noqa: BLE001 - the edge; see outcomes.py
        return in_halves(partial(_forward, expert), requests)
    return [
        # rows are independent of each other, so a finite part is right whatever stands beside it
        part if sound or all(map(is_finite, part)) else _forward_of_one(expert, leaves)
        for part, leaves in zip(parts, requests, strict=True)
    ]


def _forward_of_one(expert: NestedExpert, leaves: Leaves) -> Outcome:
    try:
        with expert.numbers_for(*leaves):
            outputs = expert.outputs(_joined(expert, [leaves]))
        return _on_cpu(outputs) if all(map(is_finite, outputs)) else not_finite(expert, *leaves)
    except BaseException as error:  # noqa: BLE001 - the edge
        return explained(expert, error, *leaves)


def _gradients_of_inputs(expert: NestedExpert, requests: Sequence[Leaves]) -> list[Outcome]:
    if expert.is_random and len(requests) > 1:
        return [outcome for request in requests for outcome in _gradients_of_inputs(expert, [request])]
    count = len(expert.nested.inputs)
    try:
        joined = _joined(expert, requests)
        with expert.numbers_for(*requests[0][:count]):
            parts = _parted(expert.gradients_of_inputs(joined[:count], joined[count:]), requests)
    except BaseException as error:  # noqa: BLE001 - the edge
        if len(requests) == 1:
            return [explained(expert, error, *requests[0])]
        return in_halves(partial(_gradients_of_inputs, expert), requests)
    failure = ExpertFailed(f"{expert.uid}: the gradient is not finite for these inputs")
    return [part if all(map(is_finite, part)) else failure for part in parts]


def _backward(expert: NestedExpert, requests: Sequence[Leaves]) -> list[Outcome]:
    """The gradients of each request's inputs, after one step by the sum of what was sound."""
    outcomes: list[Outcome] = []
    total = None
    needs_no_clipping = expert.clip_norm is None or not expert.trained
    if len(requests) > 1 and needs_no_clipping and not expert.is_random:
        together = _gradients(expert, requests)
        if not isinstance(together, LearningAtHomeError):
            of_inputs, total = together
            outcomes += _parted(of_inputs, requests)
    if total is None:
        for request in requests:
            found = _gradients(expert, [request], times=len(requests))
            if isinstance(found, LearningAtHomeError):
                outcomes.append(found)
            else:
                outcomes.append(found[0])
                total = found[1] if total is None else total.plus(found[1])
    if total is None:
        return outcomes
    sound = [number for number, outcome in enumerate(outcomes) if not isinstance(outcome, LearningAtHomeError)]
    try:
        expert.apply(total, sum(len(requests[number][0]) for number in sound))
    except BaseException as error:  # noqa: BLE001 - the edge
        failure = explained(expert, error)
        return [failure if number in sound else outcome for number, outcome in enumerate(outcomes)]
    return outcomes


def _gradients(expert: NestedExpert, requests: Sequence[Leaves], times: int = 1) -> _Found | LearningAtHomeError:
    """Of these requests together, clipped as one."""
    count = len(expert.nested.inputs)
    try:
        joined = _joined(expert, requests)
        with expert.numbers_for(*requests[0][:count]):
            of_inputs, found = expert.gradients_of(joined[:count], joined[count:])
        found = found.clipped(expert.clip_norm)
        expert.check_can_step(found, times=times)
        return _on_cpu(of_inputs), found
    except BaseException as error:  # noqa: BLE001 - the edge
        return explained(expert, error, *(requests[0] if len(requests) == 1 else ()))


def _joined(expert: NestedExpert, requests: Sequence[Leaves]) -> Leaves:
    """Each tensor's rows of all requests, one after the other, on the device."""
    return tuple([to_device(parts, expert.device) for parts in zip(*requests, strict=True)])


def _parted(joined: Leaves, requests: Sequence[Leaves]) -> list[Leaves]:
    """Those of each request again, on the CPU."""
    sizes = [len(leaves[0]) for leaves in requests]
    if not joined:  # of inputs that are all whole numbers there is no gradient
        return [()] * len(requests)
    return list(zip(*(leaf.split_with_sizes(sizes) for leaf in _on_cpu(joined)), strict=True))


def _on_cpu(leaves: Leaves) -> Leaves:
    return tuple(map(to_cpu, leaves))
