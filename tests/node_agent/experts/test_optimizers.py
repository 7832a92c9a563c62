"""A step is torch's own, bit for bit."""

import pytest
import torch
from torch import Tensor

from learning_at_home.errors import ConfigError
from learning_at_home.project import BUILT_IN_OPTIMIZERS, OptimizerSpec
from node_agent.experts import update_rules
from node_agent.experts.optimizers import Optimizer, step_together
from node_agent.experts.update_rules import Adam, UpdateRule, register_optimizer

ADAM = OptimizerSpec(learning_rate=0.01, weight_decay=0.1)
ADAMW = OptimizerSpec(name="adamw", learning_rate=0.01, weight_decay=0.1, betas=(0.8, 0.9))
SGD = OptimizerSpec(name="sgd", learning_rate=0.1, weight_decay=0.01)
NESTEROV = OptimizerSpec(name="sgd", learning_rate=0.1, momentum=0.9, nesterov=True)
MOMENTUM = OptimizerSpec(name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.01)
TORCHS = {
    "adam": (ADAM, lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1, fused=True)),
    "adamw": (ADAMW, lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, betas=(0.8, 0.9), fused=True)),
    "sgd": (SGD, lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.01, fused=True)),
    "nesterov": (NESTEROV, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, fused=True)),
    "momentum": (MOMENTUM, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, fused=True)),
}


@pytest.fixture
def registered_rules():
    """The registry as it was, after a test that adds to it."""
    before = dict(update_rules._registry)
    yield
    update_rules._registry.clear()
    update_rules._registry.update(before)


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
    of_fused, of_plain = Optimizer(spec, fused), Optimizer(spec, plain)

    for _ in range(3):
        gradients = [torch.randn_like(parameter) for parameter in plain]
        of_fused.step([gradient.clone() for gradient in gradients])
        with monkeypatch.context() as without_kernels:
            without_kernels.setattr(update_rules, "FUSED_DEVICES", ())
            without_kernels.delattr(torch, "_fused_sgd_")
            of_plain.step(gradients)

    for ours, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-12, atol=1e-14)


def test_experts_of_different_age_step_together_each_by_its_own_rate():
    spec = OptimizerSpec(name="sgd", learning_rate=1.0, warmup_updates=4)
    optimizers = [Optimizer(spec, [torch.zeros(2)]) for _ in range(3)]
    optimizers[1].step([torch.ones(2)])

    assert step_together(optimizers, [[torch.ones(2)], [torch.ones(2)], [None]]) == [True, True, False]

    assert [float(optimizer.parameters[0][0]) for optimizer in optimizers] == [-0.25, -0.75, 0.0]
    assert [optimizer.updates for optimizer in optimizers] == [1, 2, 0]


def test_a_registered_rule_gets_the_state_that_it_names_and_the_rate_of_the_schedule(registered_rules):
    @register_optimizer("heavy-ball")
    class HeavyBall(UpdateRule):
        state = ("velocity",)
        counts_steps = True
        options = ("friction",)

        def step(self, parameters, gradients, state, learning_rate):
            for parameter, gradient, velocity in zip(parameters, gradients, state["velocity"], strict=True):
                velocity.mul_(1 - self.spec.options["friction"]).add_(gradient)
                parameter.sub_(velocity, alpha=learning_rate)

    spec = OptimizerSpec(name="heavy-ball", learning_rate=0.5, options={"friction": 0.1}, warmup_updates=2)
    ours, theirs = torch.ones(3), torch.ones(3, requires_grad=True)
    optimizer, reference = Optimizer(spec, [ours]), torch.optim.SGD([theirs], 0.5, momentum=0.9)
    for learning_rate in (0.25, 0.5, 0.5):
        gradient = torch.randn(3)
        theirs.grad = gradient.clone()
        reference.param_groups[0]["lr"] = learning_rate
        optimizer.step([gradient])
        reference.step()

    torch.testing.assert_close(ours, theirs.detach())
    assert float(optimizer.state[0]["steps"]) == 3.0


def test_an_optimizer_that_is_not_installed_is_refused_by_its_name_with_those_there_are():
    with pytest.raises(ConfigError, match="no optimizer 'lion' is loaded here; there are: adam, adamw, frozen, sgd"):
        Optimizer(OptimizerSpec(name="lion"), [])


def test_an_option_that_an_optimizer_does_not_know_is_refused():
    with pytest.raises(ConfigError, match="optimizer 'adam' has no option 'amsgrad'; its options: none"):
        Optimizer(OptimizerSpec(options={"amsgrad": 1.0}), [])


def test_two_optimizers_of_one_name_are_refused(registered_rules):
    with pytest.raises(ConfigError, match="two optimizers are called 'sgd'"):
        register_optimizer("sgd")(Adam)


def test_the_project_knows_the_built_in_ones():
    assert sorted(BUILT_IN_OPTIMIZERS) == sorted(update_rules._registry)
