"""The backward round of a layer's calls: those that answered forward are asked for the gradients. Synchronous."""

# R rows in the batch, S slots per row (the most answers that any row has)

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from learning_at_home.client.fanout import CallContext, FanOut, Result, Task, expected_of, tensors_of
from learning_at_home.client.quorum import Quorum, Wait
from learning_at_home.client.rounds import MAX_TRIES, Part, Terms, joined, not_enough, patience_s, select, silence
from learning_at_home.client.traced_round import TracedRound
from learning_at_home.client.tracing import section
from learning_at_home.errors import LearningAtHomeError
from learning_at_home.transport.connections import Exchange
from learning_at_home.wire.messages import Operation


def ask_backward(
    context: CallContext,
    terms: Terms,
    inputs: tuple[Tensor, ...],
    gradients_RSx: tuple[Tensor, ...],
    parts: tuple[Part, ...],
    traced: TracedRound | None = None,
    operation: Operation = "backward",
) -> tuple[Tensor, ...]:
    """The gradients of the float inputs [R, *row shape], from the experts that answered forward.

    Their hosts update them by a "backward", not by a "gradient".
    All tensors are detached, on the CPU. What an expert does not answer is left out of the sum and counted; rows of
    which no expert answers get zero and are counted. Raises NotEnoughExperts when nobody answers at all, unless rows
    without an answer pass through.
    """
    found = tuple([torch.zeros_like(tensor) for tensor in inputs if tensor.is_floating_point()])
    if not parts:
        return found
    with context.connections.exchange() as exchange:
        num_rows, num_slots = gradients_RSx[0].shape[:2]
        flat = tuple([gradient_RSx.flatten(0, 1) for gradient_RSx in gradients_RSx])
        asked_for = terms.layer.float_inputs
        tasks = []
        with section(traced, "gather"):
            inputs_of_parts = select(inputs, [part.rows for part in parts])
            gradients_of_parts = select(flat, [part.rows * num_slots + part.slots for part in parts])
            for part, of_inputs, of_outputs in zip(parts, inputs_of_parts, gradients_of_parts, strict=True):
                tensors = of_inputs + of_outputs
                expected = expected_of(asked_for, len(part.rows))
                tasks.append(
                    Task(part.uid, part.cell, part.holder, operation, tensors, len(part.rows), part.rows, expected)
                )
        results, causes, zero_rows = _run_backward(context, terms, exchange, tasks, num_rows, traced)
        if not results and terms.on_missing == "raise":
            raise not_enough(terms.layer.prefix, num_rows, num_rows, 1, causes, operation)
        asked = sum(len(task.rows) for task in tasks)
        context.stats.lost_gradients(zero_rows, asked - sum(len(result.task.rows) for result in results))
        with section(traced, "scatter"):
            if results:
                results.sort(key=lambda result: (result.task.cell, result.task.rows[0]))
                rows = torch.from_numpy(np.concatenate([result.task.rows for result in results]))
                for whole, tensors in zip(found, zip(*map(tensors_of, results), strict=True), strict=True):
                    whole.index_add_(0, rows, joined(tensors))
    return found


def _run_backward(
    context: CallContext,
    terms: Terms,
    exchange: Exchange,
    tasks: list[Task],
    num_rows: int,
    traced: TracedRound | None,
) -> tuple[list[Result], dict[str, LearningAtHomeError], int]:
    """The good results, the causes of the others, and how many rows have no result."""
    now = context.clock.monotonic_s()
    deadline = now + terms.deadline_s
    quorum = Quorum(
        num_rows, terms.k_min, grace_s=terms.grace_s, patience_s=terms.deadline_s, deadline=deadline, every_row=False
    )
    quorum.exhausted(np.arange(num_rows))  # only who computed a row forward can compute it backward
    passed = np.ones(num_rows, bool)
    for task in tasks:
        passed[task.rows] = False
    if passed.any():
        quorum.excuse(np.flatnonzero(passed))
    results, causes = [], {}
    again_s = patience_s(context, terms, {task.holder.public_key for task in tasks})
    again_at = now + again_s
    fanout = FanOut(
        context, exchange, deadline, insist=True, tries=MAX_TRIES, compression=terms.compression, traced=traced
    )
    for task in tasks:
        quorum.asked(task.rows, now)
    fanout.ask(tasks)
    while isinstance(decision := quorum.decide(context.clock.monotonic_s()), Wait):
        result = fanout.next_result(min(decision.until, again_at))
        if result is None:
            if (now := context.clock.monotonic_s()) >= again_at:
                fanout.ask_silent_again(quorum.rows_without_answer())
                again_s *= 2  # what was sent again may be lost, too
                again_at = now + again_s
            continue
        if result.error is None:
            results.append(result)
            quorum.answered(result.task.rows, context.clock.monotonic_s())
        else:
            causes[result.task.uid] = result.error
            quorum.failed(result.task.rows)
    for task in fanout.leave_behind(terms.grace_s):
        causes.setdefault(task.uid, silence(task.uid, task.holder))
    return results, causes, len(quorum.rows_without_answer())
