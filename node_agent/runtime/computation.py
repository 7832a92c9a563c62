"""Compute one batch so that no request in it can harm another.

The requests' rows are computed together. When that fails, each is computed alone: the guilty ones get their errors, the
others their answers. A backward steps the optimizer once per batch, with the gradients of the requests that were sound.
Runs in the device thread. An expert's code, which may be anyone's, ends here: whatever it raises is the answer to the
request that provoked it. Whether the device itself has failed, `device_still_works` tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from learning_at_home.errors import ExpertFailed, LearningAtHomeError
from learning_at_home.wire.messages import Operation
from node_agent.experts.expert import Expert, Gradients

Outcome = Tensor | LearningAtHomeError  # a tensor on the CPU, or why there is none
MAX_CAUSE_CHARS = 300


def compute(expert: Expert, operation: Operation, requests: Sequence[Sequence[Tensor]]) -> list[Outcome]:
    """One outcome per request, in their order. `requests` holds each one's tensors on the CPU."""
    if operation == "forward":
        return _forward(expert, [tensors[0] for tensors in requests])
    return _backward(expert, [(tensors[0], tensors[1]) for tensors in requests])


def device_still_works(device: torch.device) -> bool:
    """Whether the device computes after an error. A CUDA context that failed once fails for ever."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


def _forward(expert: Expert, requests: list[Tensor]) -> list[Outcome]:
    try:
        answers = expert.forward(_joined(expert, requests)).to("cpu")
    except Exception as error:  # noqa: BLE001 - the edge: see above
        if len(requests) == 1:
            return [_explained(expert, error)]
        return [outcome for rows in requests for outcome in _forward(expert, [rows])]
    return list(torch.split(answers, [len(rows) for rows in requests]))


def _backward(expert: Expert, requests: list[tuple[Tensor, Tensor]]) -> list[Outcome]:
    together = _gradients(expert, [rows for rows, _ in requests], [gradient for _, gradient in requests])
    if isinstance(together, Gradients):
        outcomes: list[Gradients | LearningAtHomeError] = []
        for of_rows in torch.split(together.of_rows, [len(rows) for rows, _ in requests]):
            outcomes.append(Gradients(of_rows, ()))
    elif len(requests) == 1:
        return [together]
    else:
        outcomes = [_gradients(expert, [rows], [gradient]) for rows, gradient in requests]
        sound = [outcome for outcome in outcomes if isinstance(outcome, Gradients)]
        if not sound:
            return [outcome for outcome in outcomes if isinstance(outcome, LearningAtHomeError)]
        together = reduce(Gradients.plus, sound)
    try:
        expert.step(together.of_parameters)
    except Exception as error:  # noqa: BLE001 - the edge: see above
        failure = _explained(expert, error)
        return [failure if isinstance(outcome, Gradients) else outcome for outcome in outcomes]
    return [outcome.of_rows if isinstance(outcome, Gradients) else outcome for outcome in outcomes]


def _gradients(expert: Expert, rows: list[Tensor], gradients: list[Tensor]) -> Gradients | LearningAtHomeError:
    """Of the parameters on the device, of the rows on the CPU."""
    try:
        found = expert.gradients(_joined(expert, rows), _joined(expert, gradients))
        return replace(found, of_rows=found.of_rows.to("cpu"))
    except Exception as error:  # noqa: BLE001 - the edge: see above
        return _explained(expert, error)


def _joined(expert: Expert, parts: list[Tensor]) -> Tensor:
    """All rows as one tensor on the expert's device."""
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(expert.device)


def _explained(expert: Expert, error: Exception) -> LearningAtHomeError:
    if isinstance(error, LearningAtHomeError):
        return error
    cause = str(error).strip().splitlines() or [""]
    return ExpertFailed(f"{expert.uid}: {type(error).__name__}: {cause[0][:MAX_CAUSE_CHARS]}")
