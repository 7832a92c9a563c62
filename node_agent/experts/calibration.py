"""Whether grouped products pay, measured on the device with the node's own experts.

On a CPU they do not: 4 to 64 experts in one product gain nothing, forward or backward, and one Adam over the stack is
slower. On a GPU a small product leaves most of it idle. The more rows an expert has, the less company helps.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from learning_at_home.wire.messages import Operation
from node_agent.experts.portions import Portion
from node_agent.experts.stacks import ExpertStack

OPERATIONS: tuple[Operation, ...] = ("forward", "backward")
UNBOUNDED_ROWS = 1 << 30
TRIED_ROWS = (16, 64, 256, 1024)
TRIED_EXPERTS = 16  # more only make the figures better, and the start longer
REPEATS = 3

Seconds = Callable[[Callable[[], object]], float]


def rows_worth_grouping(stack: ExpertStack, seconds: Seconds) -> dict[Operation, int]:
    """Up to how many rows of an expert grouping is faster, per operation; 0: never. Changes no expert."""
    return {operation: _rows_worth_grouping(stack, operation, seconds) for operation in OPERATIONS}


def _rows_worth_grouping(stack: ExpertStack, operation: Operation, seconds: Seconds) -> int:
    worth = 0
    for rows in TRIED_ROWS:
        positions = range(min(len(stack.experts), TRIED_EXPERTS, stack.bounds.experts, stack.bounds.rows // rows))
        if len(positions) < 2:
            break
        grouped, alone = _both_ways(stack, operation, rows, len(positions))
        if seconds(grouped) >= seconds(alone):
            break
        worth = UNBOUNDED_ROWS if rows == TRIED_ROWS[-1] else rows
    return worth


def _both_ways(
    stack: ExpertStack, operation: Operation, rows: int, num_experts: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    experts = stack.experts[:num_experts]
    portion = Portion(tuple(range(num_experts)), rows)
    shape = (num_experts, rows, *stack.layer.row_shape)
    inputs = torch.randn(shape, dtype=experts[0].dtype, device=experts[0].device)
    if operation == "forward":
        return (
            lambda: stack.forward(portion, inputs),
            lambda: [expert.forward(inputs[position]) for position, expert in enumerate(experts)],
        )
    return (
        lambda: stack.gradients(portion, inputs, inputs),
        lambda: [expert.gradients(inputs[position], inputs[position]) for position, expert in enumerate(experts)],
    )


def seconds_on(device: torch.device) -> Seconds:
    """A stopwatch that waits for the device; the best of a few times, after one that does not count."""

    def seconds(work: Callable[[], object]) -> float:
        times = []
        for _ in range(1 + REPEATS):
            _wait_for(device)
            started = time.perf_counter()
            work()
            _wait_for(device)
            times.append(time.perf_counter() - started)
        return min(times[1:])

    return seconds


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
