"""The optimizer step of one expert, through torch's functional optimizers.

The classes of torch.optim import torch's compiler when the first one is made: 1.3 s and 800 modules that no node uses,
and their bookkeeping costs as much as the step of a small expert. The kernels are the same; the state is plain tensors.
Fused kernels take 20 to 40 % off a backward, also on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from learning_at_home.project import OptimizerSpec

EPSILON = 1e-8  # torch's own default
FUSED_DEVICES = ("cpu", "cuda")


class Optimizer:
    """Steps a list of parameters by their gradients. State is made at a parameter's first gradient, as torch does."""

    def __init__(self, spec: OptimizerSpec, parameters: Sequence[Tensor]) -> None:
        self.spec = spec
        self.parameters = list(parameters)
        self.state: dict[int, dict[str, Tensor]] = {}  # by the parameter's position
        self._fused = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in self.parameters)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None]) -> bool:
        """One step, in place; whether there was anything to step. A parameter without a gradient stays as it is."""
        positions = [position for position, gradient in enumerate(gradients) if gradient is not None]
        if not positions:
            return False
        parameters = [self.parameters[position] for position in positions]
        present = [gradient for gradient in gradients if gradient is not None]
        if self.spec.name == "sgd":
            self._step_sgd(positions, parameters, present)
        else:
            self._step_adam(positions, parameters, present)
        return True

    def _step_adam(self, positions: list[int], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        for position in positions:
            if position not in self.state:
                self.state[position] = _new_moments(self.parameters[position])
        states = [self.state[position] for position in positions]
        step = adam if self.spec.name == "adam" else adamw
        step(
            parameters,
            gradients,
            [state["mean"] for state in states],
            [state["mean_of_squares"] for state in states],
            [],
            [state["steps"] for state in states],
            foreach=None if self._fused else True,
            fused=self._fused,
            amsgrad=False,
            beta1=self.spec.betas[0],
            beta2=self.spec.betas[1],
            lr=self.spec.learning_rate,
            weight_decay=self.spec.weight_decay,
            eps=EPSILON,
            maximize=False,
        )

    def _step_sgd(self, positions: list[int], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        buffers = [self.state.get(position, {}).get("momentum") for position in positions]
        sgd(
            parameters,
            gradients,
            buffers,
            foreach=None if self._fused else True,
            fused=self._fused,
            weight_decay=self.spec.weight_decay,
            momentum=self.spec.momentum,
            lr=self.spec.learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        if self.spec.momentum:
            for position, buffer in zip(positions, buffers, strict=True):
                if buffer is not None:
                    self.state[position] = {"momentum": buffer}


def _new_moments(parameter: Tensor) -> dict[str, Tensor]:
    return {
        "steps": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "mean": torch.zeros_like(parameter, requires_grad=False),
        "mean_of_squares": torch.zeros_like(parameter, requires_grad=False),
    }
