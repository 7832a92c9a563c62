"""The optimizer step of experts, by torch's fused kernels.

The classes of torch.optim import torch's compiler when the first one is made: 1.3 s and 800 modules that no node uses,
and their bookkeeping costs as much as the step of a small expert. The kernels are the same; the state is plain tensors.
Fused kernels take 20 to 40 % off a backward, also on the CPU. They are called directly, with lists kept from step to
step: torch's functional optimizers first sort the tensors by device, which takes as long as the step of 30,000
parameters. Those are used where there is no fused kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from learning_at_home.project import OptimizerSpec

EPSILON = 1e-8  # torch's own default
FUSED_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class Stepped:
    """The parameters that one step changes, and their state, as the kernels take them: lists of one order."""

    present: tuple[bool, ...]  # which parameters have a gradient
    counted: list[Tensor]  # what counts their steps: one tensor where all have a gradient
    parameters: list[Tensor]
    steps: list[Tensor]
    means: list[Tensor]
    means_of_squares: list[Tensor]
    momenta: list[Tensor]


class Optimizer:
    """Steps a list of parameters by their gradients. State is made at a parameter's first gradient, as torch does.

    `state` is by the parameter's position; its tensors change in place.
    """

    def __init__(self, spec: OptimizerSpec, parameters: Sequence[Tensor]) -> None:
        self.spec = spec
        self.parameters = [parameter.detach() for parameter in parameters]  # the same memory, changed without autograd
        self.state: dict[int, dict[str, Tensor]] = {}
        self.is_fused = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in self.parameters)
        # float32 as torch has it; one tensor, so that one addition counts a step of all
        device = self.parameters[0].device if self.parameters else None
        self._steps = torch.zeros(len(self.parameters), dtype=torch.float32, device=device)
        self._last: Stepped | None = None  # of the last step: nearly always, of the next one too

    def step(self, gradients: Sequence[Tensor | None]) -> bool:
        """One step, in place; whether there was anything to step. A parameter without a gradient stays as it is."""
        return step_together([self], [gradients])[0]

    def prepare(self, gradients: Sequence[Tensor | None]) -> Stepped:
        """What a step by these gradients changes. Makes the state of parameters that never had a gradient."""
        present = tuple([gradient is not None for gradient in gradients])
        if self._last is None or self._last.present != present:
            positions = [position for position, there in enumerate(present) if there]
            for position in positions:
                if position not in self.state:
                    self.state[position] = self._new_state(position)
            states = [self.state[position] for position in positions]
            self._last = Stepped(
                present,
                [self._steps] if all(present) else [self._steps[position] for position in positions],
                [self.parameters[position] for position in positions],
                [state["steps"] for state in states if "steps" in state],
                [state["mean"] for state in states if "mean" in state],
                [state["mean_of_squares"] for state in states if "mean_of_squares" in state],
                [state["momentum"] for state in states if "momentum" in state],
            )
        return self._last

    def _new_state(self, position: int) -> dict[str, Tensor]:
        parameter = self.parameters[position]
        if self.spec.name == "sgd":
            return {"momentum": torch.zeros_like(parameter)} if self.spec.momentum else {}
        return {
            "steps": self._steps[position],
            "mean": torch.zeros_like(parameter),
            "mean_of_squares": torch.zeros_like(parameter),
        }


def step_together(optimizers: Sequence[Optimizer], gradients: Sequence[Sequence[Tensor | None]]) -> list[bool]:
    """One step of each of these by its gradients, as one kernel; which had any. They share spec and device."""
    present = [gradient for of_one in gradients for gradient in of_one if gradient is not None]
    if not present:
        return [False] * len(optimizers)
    all_stepped = [optimizer.prepare(of_one) for optimizer, of_one in zip(optimizers, gradients, strict=True)]
    stepped = all_stepped[0] if len(all_stepped) == 1 else _joined(all_stepped)
    first = optimizers[0]
    step = _step_sgd if first.spec.name == "sgd" else _step_adam
    step(first.spec, stepped, present, first.is_fused)
    return [any(one.present) for one in all_stepped]


def _step_adam(spec: OptimizerSpec, stepped: Stepped, gradients: list[Tensor], is_fused: bool) -> None:
    if not is_fused:
        step = adam if spec.name == "adam" else adamw
        step(
            stepped.parameters,
            gradients,
            stepped.means,
            stepped.means_of_squares,
            [],
            stepped.steps,
            foreach=True,
            amsgrad=False,
            beta1=spec.betas[0],
            beta2=spec.betas[1],
            lr=spec.learning_rate,
            weight_decay=spec.weight_decay,
            eps=EPSILON,
            maximize=False,
        )
        return
    if len(stepped.counted) == 1:
        stepped.counted[0].add_(1)
    else:
        torch._foreach_add_(stepped.counted, 1)
    fused_step = torch._fused_adam_ if spec.name == "adam" else torch._fused_adamw_
    fused_step(
        stepped.parameters,
        gradients,
        stepped.means,
        stepped.means_of_squares,
        [],
        stepped.steps,
        lr=spec.learning_rate,
        beta1=spec.betas[0],
        beta2=spec.betas[1],
        weight_decay=spec.weight_decay,
        eps=EPSILON,
        amsgrad=False,
        maximize=False,
    )


def _step_sgd(spec: OptimizerSpec, stepped: Stepped, gradients: list[Tensor], is_fused: bool) -> None:
    if not is_fused:
        sgd(
            stepped.parameters,
            gradients,
            list(stepped.momenta) if stepped.momenta else [None] * len(gradients),
            foreach=True,
            weight_decay=spec.weight_decay,
            momentum=spec.momentum,
            lr=spec.learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        return
    torch._fused_sgd_(
        stepped.parameters,
        gradients,
        stepped.momenta,
        weight_decay=spec.weight_decay,
        momentum=spec.momentum,
        lr=spec.learning_rate,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,  # a momentum that begins with zeros makes the same first step
    )


def _joined(parts: Sequence[Stepped]) -> Stepped:
    return Stepped(
        (),
        [tensor for part in parts for tensor in part.counted],
        [tensor for part in parts for tensor in part.parameters],
        [tensor for part in parts for tensor in part.steps],
        [tensor for part in parts for tensor in part.means],
        [tensor for part in parts for tensor in part.means_of_squares],
        [tensor for part in parts for tensor in part.momenta],
    )
