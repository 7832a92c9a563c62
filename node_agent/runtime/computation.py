"""Compute one batch so that no request in it can harm another.

The requests' rows are computed together, but for networks that draw random numbers (randomness.py). Of a forward, a
request whose rows are not finite fails alone, and is told whether its inputs were; a batch that raises is computed one
request at a time. A backward clips each request's gradient on its own, adds them up and steps the optimizer once per
batch, with the gradients of the requests that were sound.
Runs in one thread at a time. An expert's code ends here (outcomes.py). Whether the device itself has failed,
`device_still_works` tells. Experts with a schema: nested_computation.py.
Policy: docs/decisions/0003-node-runtime.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from learning_at_home.errors import ExpertFailed, LearningAtHomeError
from learning_at_home.tensors.finite import is_finite
from learning_at_home.wire.messages import FORWARDS, Operation
from node_agent.experts.architectures import BACKWARD_FLOP_FACTOR
from node_agent.experts.clipping import gradients_together
from node_agent.experts.expert import Expert
from node_agent.experts.gradients import Gradients
from node_agent.experts.nested_expert import NestedExpert
from node_agent.runtime.nested_computation import compute_nested
from node_agent.runtime.outcomes import Outcome, explained, in_halves, not_finite
from node_agent.runtime.transfers import to_cpu, to_device

# What an expert in evaluation mode computes as the operation beside it: its dropout is off, and it learns nothing.
EVALUATED: Mapping[Operation, Operation] = {"eval_forward": "forward", "eval_gradient": "gradient"}
# A backward of this much work, and of rows enough to use each weight often, gains little from company: it is computed
# alone, and its norm then costs nothing more. About 1 ms of a CPU core or of a GPU; a call's overhead is 0.2 ms.
ALONE_FLOP = {"cpu": 50e6, "cuda": 20e9}
ALONE_USES = 64
FLOP_PER_WEIGHT = 2 * BACKWARD_FLOP_FACTOR  # of one use in a backward


def compute(expert: Expert, operation: Operation, requests: Sequence[Sequence[Tensor]]) -> list[Outcome]:
    """One outcome per request, in their order; see `is_left_to_sender`. `requests`: each one's tensors on the CPU."""
    # Numbers below 1e-38 (1e-308 in float64) count as zero in this thread meanwhile. A CPU takes 20 to 90 times as long
    # for them: a caller could stop a node by sending some, and Adam makes them for weights without gradient.
    torch.set_flush_denormal(True)
    try:
        if operation not in EVALUATED:
            return _compute(expert, operation, requests)
        with expert.evaluating():
            return _compute(expert, EVALUATED[operation], requests)
    finally:
        torch.set_flush_denormal(False)


def _compute(expert: Expert, operation: Operation, requests: Sequence[Sequence[Tensor]]) -> list[Outcome]:
    if len(requests) == 1 and not expert.has_schema and operation != "gradient":
        tensors = requests[0]
        if operation == "forward":
            return [_forward_of_one(expert, tensors[0], remember=True)]
        return [_backward_of_one(expert, tensors[0], tensors[1])]
    if isinstance(expert, NestedExpert):
        return compute_nested(expert, operation, [tuple(tensors) for tensors in requests])
    if operation == "gradient":
        return _gradients_of_rows(expert, [(tensors[0], tensors[1]) for tensors in requests])
    if operation == "forward":
        return _forward(expert, [rows for rows, *_ in requests])
    return _backward(expert, [(tensors[0], tensors[1]) for tensors in requests])


def step_gathered(expert: Expert) -> LearningAtHomeError | None:
    """Make the update that an expert's gathered gradients wait for. Why there was none; they are lost then."""
    torch.set_flush_denormal(True)
    try:
        expert.step_gathered()
    except BaseException as error:  # noqa: BLE001 - the edge: see above
        return explained(expert, error)
    finally:
        torch.set_flush_denormal(False)
    return None


def is_left_to_sender(expert: Expert, operation: Operation, num_requests: int) -> bool:
    """Whether `compute` does not look if the answer is finite: that to a forward without company, on a CPU.

    A small one is looked at when it is framed, for less. A large one's caller looks at it in any case, and harms nobody
    else. On a GPU a look costs nothing beside the transfer.
    """
    return num_requests == 1 and operation in FORWARDS and expert.device.type == "cpu" and not expert.has_schema


def device_still_works(device: torch.device) -> bool:
    """Whether the device computes after an error. A CUDA context that failed once fails for ever."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


def _forward_of_one(expert: Expert, rows: Tensor, *, remember: bool = False) -> Outcome:
    """`remember`: it came without company, so that on a CPU nobody has to look at its answer here."""
    try:
        with expert.numbers_for(rows):
            if remember and rows.device == expert.device:
                return expert.forward(rows, remember=True)
            answer = expert.forward(to_device([rows], expert.device))
        return to_cpu(answer) if is_finite(answer) else not_finite(expert, rows)
    except BaseException as error:  # noqa: BLE001 - the edge: see above
        return explained(expert, error, rows)


def _forward(expert: Expert, requests: Sequence[Tensor]) -> list[Outcome]:
    if len(requests) <= 1 or expert.is_random:
        return [_forward_of_one(expert, rows) for rows in requests]
    try:
        answers = expert.forward(to_device(requests, expert.device))
        sound = is_finite(answers)
        answers = to_cpu(answers)
    except BaseException:  # noqa: BLE001 - the edge: see above
        return in_halves(partial(_forward, expert), requests)
    parts = answers.split_with_sizes([len(rows) for rows in requests])
    if sound:
        return list(parts)
    return [
        # rows are independent of each other, so a finite part is right whatever stands beside it
        part if is_finite(part) else _forward_of_one(expert, rows) if is_finite(rows) else not_finite(expert, rows)
        for part, rows in zip(parts, requests, strict=True)
    ]


def _gradients_of_rows(expert: Expert, requests: Sequence[tuple[Tensor, Tensor]]) -> list[Outcome]:
    """A backward without a step: rows are independent of each other, and so are their gradients."""
    if expert.is_random and len(requests) > 1:
        return [outcome for request in requests for outcome in _gradients_of_rows(expert, [request])]
    try:
        rows = to_device([rows for rows, _ in requests], expert.device)
        output_gradient = to_device([gradient for _, gradient in requests], expert.device)
        with expert.numbers_for(requests[0][0]):
            found = to_cpu(expert.gradient_of_rows(rows, output_gradient))
    except BaseException as error:  # noqa: BLE001 - the edge: see above
        if len(requests) == 1:
            return [explained(expert, error, requests[0][0])]
        return in_halves(partial(_gradients_of_rows, expert), requests)
    return [
        part if is_finite(part) else ExpertFailed(f"{expert.uid}: the gradient is not finite for these inputs")
        for part in found.split_with_sizes([len(rows) for rows, _ in requests])
    ]


def _backward_of_one(expert: Expert, rows: Tensor, output_gradient: Tensor) -> Outcome:
    found = _gradients(expert, rows, output_gradient, 1)
    if isinstance(found, LearningAtHomeError):
        return found
    failure = _apply(expert, found, len(rows))
    return found.of_rows if failure is None else failure


def _backward(expert: Expert, requests: list[tuple[Tensor, Tensor]]) -> list[Outcome]:
    outcomes: dict[int, Outcome] = {}
    together = _to_compute_together(expert, [len(rows) for rows, _ in requests])
    total = _gradients_together(expert, [requests[index] for index in together]) if len(together) > 1 else None
    if total is not None:
        parts = total.of_rows.split_with_sizes([len(requests[index][0]) for index in together])
        outcomes.update(zip(together, parts, strict=True))
    for index, (rows, output_gradient) in enumerate(requests):
        if index in outcomes:
            continue
        found = _gradients(expert, rows, output_gradient, len(requests))
        if isinstance(found, Gradients):
            total = found if total is None else total.plus(found)
            outcomes[index] = found.of_rows
        else:
            outcomes[index] = found
    in_order = [outcomes[index] for index in range(len(requests))]
    num_rows = sum(len(outcome) for outcome in in_order if isinstance(outcome, Tensor))
    failure = None if total is None else _apply(expert, total, num_rows)
    return in_order if failure is None else [failure if isinstance(o, Tensor) else o for o in in_order]


def _to_compute_together(expert: Expert, sizes: list[int]) -> list[int]:
    """Which requests to compute as one batch, by their rows: the shortest first."""
    if expert.is_random:
        return []
    if expert.clip_norm is None or not expert.trained:
        return list(range(len(sizes)))
    flop = ALONE_FLOP.get(expert.device.type, ALONE_FLOP["cpu"])
    flop = max(flop, ALONE_USES * FLOP_PER_WEIGHT * sum(parameter.numel() for parameter in expert.trained))
    small = [index for index, rows in enumerate(sizes) if rows * expert.backward_flop_per_row < flop]
    return sorted(small, key=sizes.__getitem__)


def _gradients_together(expert: Expert, requests: list[tuple[Tensor, Tensor]]) -> Gradients | None:
    """Of all these, each clipped on its own; None when they have to be computed one at a time."""
    try:
        rows = to_device([rows for rows, _ in requests], expert.device)
        output_gradient = to_device([gradient for _, gradient in requests], expert.device)
        if expert.clip_norm is not None and expert.trained:
            found = gradients_together(expert, rows, output_gradient, [len(rows) for rows, _ in requests])
        else:
            found = expert.gradients(rows, output_gradient)
        if found is None:
            return None
        expert.check_can_step(found)
        return _with_rows_on_cpu(found)
    except BaseException:  # noqa: BLE001 - the edge: each request then meets its own error
        return None


def _gradients(
    expert: Expert, rows: Tensor, output_gradient: Tensor, num_requests: int
) -> Gradients | LearningAtHomeError:
    """Of one of so many requests, clipped: of the parameters on the device, of the rows on the CPU."""
    try:
        with expert.numbers_for(rows):
            found = expert.gradients(to_device([rows], expert.device), to_device([output_gradient], expert.device))
        found = found.clipped(expert.clip_norm)
        expert.check_can_step(found, times=num_requests)
        return _with_rows_on_cpu(found)
    except BaseException as error:  # noqa: BLE001 - the edge: see above
        return explained(expert, error, rows)


def _apply(expert: Expert, gradients: Gradients, num_rows: int) -> LearningAtHomeError | None:
    """Why these were neither stepped by nor gathered; None when they were."""
    try:
        expert.apply(gradients, num_rows)
    except BaseException as error:  # noqa: BLE001 - the edge: see above
        return explained(expert, error)
    return None


def _with_rows_on_cpu(found: Gradients) -> Gradients:
    return Gradients(to_cpu(found.of_rows), found.of_parameters, found.norm)
