"""The optimizer of one expert: its rule, its state and how many updates it has made. Several may step as one.

Rules are called with lists that are kept from step to step: nearly always the same parameters have a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learning_at_home.project import OptimizerSpec
from node_agent.experts.schedules import learning_rate_at
from node_agent.experts.update_rules import make_rule

STEPS = "steps"


@dataclass(frozen=True, slots=True)
class Stepped:
    """The parameters that one step changes, and their state, as the rules take them: lists of one order."""

    present: tuple[bool, ...]  # which parameters have a gradient
    counted: list[Tensor]  # what counts their steps: one tensor where all have a gradient, none where nothing counts
    parameters: list[Tensor]
    state: dict[str, list[Tensor]]


class Optimizer:
    """Steps a list of parameters by their gradients. State is made at a parameter's first gradient, as torch does.

    `state` is by the parameter's position; its tensors change in place. `updates` counts the steps.
    """

    def __init__(self, spec: OptimizerSpec, parameters: Sequence[Tensor]) -> None:
        """Raises ConfigError when no such optimizer is installed."""
        self.spec = spec
        self.rule = make_rule(spec)
        self.updates = 0
        self.parameters = [parameter.detach() for parameter in parameters]  # the same memory, changed without autograd
        self.state: dict[int, dict[str, Tensor]] = {}
        # float32 as torch has it; one tensor, so that one addition counts a step of all
        device = self.parameters[0].device if self.parameters else None
        self._steps = torch.zeros(len(self.parameters), dtype=torch.float32, device=device)
        self._last: Stepped | None = None  # of the last step: nearly always, of the next one too

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return learning_rate_at(self.spec, self.updates)

    def step(self, gradients: Sequence[Tensor | None]) -> bool:
        """One step, in place; whether there was anything to step. A parameter without a gradient stays as it is."""
        present = [gradient for gradient in gradients if gradient is not None]
        if present:
            _step([self], self.prepare(gradients), present)
        return bool(present)

    def prepare(self, gradients: Sequence[Tensor | None]) -> Stepped:
        """What a step by these gradients changes. Makes the state of parameters that never had a gradient."""
        present = tuple([gradient is not None for gradient in gradients])
        if self._last is None or self._last.present != present:
            positions = [position for position, there in enumerate(present) if there]
            for position in positions:
                if position not in self.state:
                    self.state[position] = self._new_state(position)
            counted = [self._steps] if all(present) else [self._steps[position] for position in positions]
            names = (*self.rule.state, STEPS) if self.rule.counts_steps else self.rule.state
            self._last = Stepped(
                present,
                counted if self.rule.counts_steps else [],
                [self.parameters[position] for position in positions],
                {name: [self.state[position][name] for position in positions] for name in names},
            )
        return self._last

    def _new_state(self, position: int) -> dict[str, Tensor]:
        state = {name: torch.zeros_like(self.parameters[position]) for name in self.rule.state}
        return {STEPS: self._steps[position], **state} if self.rule.counts_steps else state


def step_together(optimizers: Sequence[Optimizer], gradients: Sequence[Sequence[Tensor | None]]) -> list[bool]:
    """One step of each of these by its gradients; which had any. They share spec and device.

    Those of one learning rate step by one kernel.
    """
    if len(optimizers) == 1:
        return [optimizers[0].step(gradients[0])]
    by_rate: dict[float, list[int]] = {}
    for position, of_one in enumerate(gradients):
        if any(gradient is not None for gradient in of_one):
            by_rate.setdefault(optimizers[position].learning_rate, []).append(position)
    for positions in by_rate.values():
        stepping = [optimizers[position] for position in positions]
        present = [gradient for position in positions for gradient in gradients[position] if gradient is not None]
        _step(stepping, _joined([optimizers[position].prepare(gradients[position]) for position in positions]), present)
    had_any = {position for positions in by_rate.values() for position in positions}
    return [position in had_any for position in range(len(optimizers))]


def _step(optimizers: Sequence[Optimizer], stepped: Stepped, gradients: list[Tensor]) -> None:
    if len(stepped.counted) == 1:
        stepped.counted[0].add_(1)
    elif stepped.counted:
        torch._foreach_add_(stepped.counted, 1)
    first = optimizers[0]
    first.rule.step(stepped.parameters, gradients, stepped.state, first.learning_rate)
    for optimizer in optimizers:
        optimizer.updates += 1


def _joined(parts: Sequence[Stepped]) -> Stepped:
    return Stepped(
        (),
        [tensor for part in parts for tensor in part.counted],
        [tensor for part in parts for tensor in part.parameters],
        {name: [tensor for part in parts for tensor in part.state[name]] for name in parts[0].state},
    )
