"""A step is torch's own, bit for bit."""

import pytest
import torch
from torch import Tensor

from learning_at_home.project import OptimizerSpec
from node_agent.experts import optimizers
from node_agent.experts.optimizers import Optimizer, step_together

ADAM = OptimizerSpec(learning_rate=0.01, weight_decay=0.1)
ADAMW = OptimizerSpec(name="adamw", learning_rate=0.01, weight_decay=0.1, betas=(0.8, 0.9))
SGD = OptimizerSpec(name="sgd", learning_rate=0.1, weight_decay=0.01)
MOMENTUM = OptimizerSpec(name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.01)
TORCHS = {
    "adam": (ADAM, lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1, fused=True)),
    "adamw": (ADAMW, lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, betas=(0.8, 0.9), fused=True)),
    "sgd": (SGD, lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.01, fused=True)),
    "momentum": (MOMENTUM, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, fused=True)),
}


def made_parameters(dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in [(5, 3), (5,), (2, 5)]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TORCHS)
def test_steps_equal_torchs_bit_for_bit_also_when_a_gradient_is_missing(name, dtype):
    spec, torchs = TORCHS[name]
    ours = made_parameters(dtype)
    theirs = [parameter.detach().clone().requires_grad_() for parameter in ours]
    optimizer, reference = Optimizer(spec, ours), torchs(theirs)

    for missing in (None, None, 1, None, 0, 0, None):
        gradients = [None if position == missing else torch.randn_like(p) for position, p in enumerate(ours)]
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        assert optimizer.step(gradients)
        reference.step()

        assert all(map(torch.equal, ours, theirs))


def test_state_begins_with_a_parameters_first_gradient():
    parameters = made_parameters(torch.float32)
    optimizer = Optimizer(ADAM, parameters)

    optimizer.step([torch.randn_like(parameters[0]), None, None])
    optimizer.step([torch.randn_like(parameters[0]), torch.randn_like(parameters[1]), None])

    assert sorted(optimizer.state) == [0, 1]
    assert [float(optimizer.state[position]["steps"]) for position in (0, 1)] == [2.0, 1.0]


def test_without_any_gradient_there_is_no_step():
    parameters = made_parameters(torch.float32)
    optimizer = Optimizer(ADAM, parameters)

    assert not optimizer.step([None, None, None])
    assert optimizer.state == {}


@pytest.mark.parametrize("name", TORCHS)
def test_several_stepped_together_are_what_each_is_alone(name):
    spec, _ = TORCHS[name]
    together = [made_parameters(torch.float32) for _ in range(3)]
    alone = [[parameter.detach().clone() for parameter in parameters] for parameters in together]
    optimizers_together = [Optimizer(spec, parameters) for parameters in together]
    optimizers_alone = [Optimizer(spec, parameters) for parameters in alone]

    for missing in (None, 1, None):  # of the second optimizer
        gradients: list[list[Tensor | None]] = [[torch.randn_like(p) for p in parameters] for parameters in together]
        if missing is not None:
            gradients[1][missing] = None
        copies = [[None if g is None else g.clone() for g in of_one] for of_one in gradients]
        assert step_together(optimizers_together, gradients) == [True] * 3
        for optimizer, of_one in zip(optimizers_alone, copies, strict=True):
            optimizer.step(of_one)

        for ours, theirs in zip(together, alone, strict=True):
            assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("name", TORCHS)
def test_a_device_without_fused_kernels_makes_the_same_steps(name, monkeypatch):
    spec, _ = TORCHS[name]
    fused = made_parameters(torch.float64)
    plain = [parameter.detach().clone() for parameter in fused]
    of_fused = Optimizer(spec, fused)
    monkeypatch.setattr(optimizers, "FUSED_DEVICES", ())
    of_plain = Optimizer(spec, plain)
    assert of_fused.is_fused
    assert not of_plain.is_fused

    for _ in range(3):
        gradients = [torch.randn_like(parameter) for parameter in plain]
        of_fused.step([gradient.clone() for gradient in gradients])
        of_plain.step(gradients)

    for ours, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-12, atol=1e-14)
