"""Optimizers by name: how each changes weights, and what it remembers of them.

The built-in ones call torch's fused kernels. The classes of torch.optim import torch's compiler when the first one is
made: 1.3 s and 800 modules that no node uses, and their bookkeeping costs as much as the step of a small expert. The
kernels are the same; the state is plain tensors. Fused kernels take 20 to 40 % off a backward, also on the CPU. Where
there is none, torch's functional optimizers are used: they first sort the tensors by device, which takes as long as the
step of 30,000 parameters.

An installed package adds its own by `register_optimizer`, and extensions.py loads it; see docs/custom-experts.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from learning_at_home.errors import ConfigError
from learning_at_home.project import OptimizerSpec

EPSILON = 1e-8  # torch's own default
FUSED_DEVICES = ("cpu", "cuda")
State = Mapping[str, list[Tensor]]  # by name, one tensor for each parameter, in the parameters' order


class UpdateRule(ABC):
    """How one optimizer makes an update. It keeps nothing of the parameters itself: one instance may serve many."""

    state: tuple[str, ...] = ()  # what is kept for each parameter: tensors of its shape and dtype, zeros at first
    counts_steps = False  # also keep "steps": how many each parameter had, this one included; float32, no dimensions
    options: tuple[str, ...] = ()  # names that the project may give in `OptimizerSpec.options`

    def __init__(self, spec: OptimizerSpec) -> None:
        """Raises ConfigError when the project says what this optimizer does not know."""
        self.spec = spec
        if unknown := sorted(spec.options.keys() - set(self.options)):
            known = ", ".join(self.options) or "none"
            raise ConfigError(f"optimizer {spec.name!r} has no option {unknown[0][:64]!r}; its options: {known}")

    @abstractmethod
    def step(self, parameters: list[Tensor], gradients: list[Tensor], state: State, learning_rate: float) -> None:
        """Change parameters and state in place, without autograd. The gradients are this method's to change.

        All are contiguous and on one device; parameters without a gradient are left out. The parameters may be those of
        several experts that have the same learning rate.
        """


RuleT = TypeVar("RuleT", bound=type[UpdateRule])
_registry: dict[str, type[UpdateRule]] = {}


def register_optimizer(name: str) -> Callable[[RuleT], RuleT]:
    """Decorator: the subclass of UpdateRule makes the updates of layers whose optimizer is `name`."""

    def register(rule: RuleT) -> RuleT:
        if _registry.get(name, rule) is not rule:
            raise ConfigError(f"two optimizers are called {name!r}")
        _registry[name] = rule
        return rule

    return register


def make_rule(spec: OptimizerSpec) -> UpdateRule:
    """Raises ConfigError with the names there are."""
    if spec.name not in _registry:
        raise ConfigError(f"no optimizer {spec.name!r} is loaded here; there are: {', '.join(sorted(_registry))}")
    return _registry[spec.name](spec)


def known_optimizers() -> Collection[str]:
    """Names of those that are registered in this process."""
    return _registry.keys()


def is_fused(parameters: Sequence[Tensor]) -> bool:
    """Whether torch has fused kernels for these, which are on one device and of one dtype."""
    return not parameters or (parameters[0].device.type in FUSED_DEVICES and parameters[0].is_floating_point())


@register_optimizer("frozen")
class Frozen(UpdateRule):
    """Never changes anything."""

    def step(self, parameters: list[Tensor], gradients: list[Tensor], state: State, learning_rate: float) -> None:
        pass


@register_optimizer("sgd")
class Sgd(UpdateRule):
    """With momentum, and Nesterov's, where the project asks for it."""

    def __init__(self, spec: OptimizerSpec) -> None:
        super().__init__(spec)
        self.state = ("momentum",) if spec.momentum else ()

    def step(self, parameters: list[Tensor], gradients: list[Tensor], state: State, learning_rate: float) -> None:
        spec = self.spec
        momenta = state["momentum"] if spec.momentum else []
        if not is_fused(parameters):
            sgd(
                parameters,
                gradients,
                list(momenta) or [None] * len(gradients),
                foreach=True,
                weight_decay=spec.weight_decay,
                momentum=spec.momentum,
                lr=learning_rate,
                dampening=0.0,
                nesterov=spec.nesterov,
                maximize=False,
            )
            return
        torch._fused_sgd_(
            parameters,
            gradients,
            momenta,
            weight_decay=spec.weight_decay,
            momentum=spec.momentum,
            lr=learning_rate,
            dampening=0.0,
            nesterov=spec.nesterov,
            maximize=False,
            is_first_step=False,  # a momentum that begins with zeros makes the same first step
        )


@register_optimizer("adam")
class Adam(UpdateRule):
    """Weight decay is part of the gradient."""

    state = ("mean", "mean_of_squares")
    counts_steps = True
    is_decoupled = False  # whether weight decay stands beside the gradient

    def step(self, parameters: list[Tensor], gradients: list[Tensor], state: State, learning_rate: float) -> None:
        spec = self.spec
        if not is_fused(parameters):
            functional = adamw if self.is_decoupled else adam
            functional(
                parameters,
                gradients,
                state["mean"],
                state["mean_of_squares"],
                [],
                list(torch._foreach_sub(state["steps"], 1)),  # it counts for itself
                foreach=True,
                amsgrad=False,
                beta1=spec.betas[0],
                beta2=spec.betas[1],
                lr=learning_rate,
                weight_decay=spec.weight_decay,
                eps=EPSILON,
                maximize=False,
            )
            return
        fused = torch._fused_adamw_ if self.is_decoupled else torch._fused_adam_
        fused(
            parameters,
            gradients,
            state["mean"],
            state["mean_of_squares"],
            [],
            state["steps"],
            lr=learning_rate,
            beta1=spec.betas[0],
            beta2=spec.betas[1],
            weight_decay=spec.weight_decay,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )


@register_optimizer("adamw")
class AdamW(Adam):
    """Weight decay stands beside the gradient."""

    is_decoupled = True
