"""A hosted expert does exactly what plain torch does with the same module."""

import math

import pytest
import torch

from learning_at_home.errors import ExpertFailed
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec, OptimizerSpec
from node_agent.experts.architectures import build_expert
from node_agent.experts.expert import Expert

UID = ExpertUid("ffn0", (1, 0))
CPU = torch.device("cpu")
OPTIMIZERS = {
    "adam": (
        OptimizerSpec(learning_rate=0.01, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    ),
    "adamw": (
        OptimizerSpec(name="adamw", learning_rate=0.01, weight_decay=0.1, betas=(0.8, 0.9)),
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, betas=(0.8, 0.9)),
    ),
    "sgd": (OptimizerSpec(name="sgd", learning_rate=0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "momentum": (
        OptimizerSpec(name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    ),
}


def layer_of(optimizer: OptimizerSpec, architecture: str = "ffn") -> LayerSpec:
    return LayerSpec(
        prefix="ffn0", grid=(2, 2), architecture=architecture, hidden_size=6, dtype="float64", optimizer=optimizer
    )


def rows(number: int = 5) -> torch.Tensor:
    return torch.randn(number, 6, dtype=torch.float64)


def weights(expert: Expert) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in expert.module.parameters()]


def test_forward_is_the_modules_own():
    layer = layer_of(OptimizerSpec())
    x = rows()

    answer = Expert.create(UID, layer, "digits", CPU).forward(x)

    assert torch.equal(answer, build_expert(layer, "digits", UID)(x))


@pytest.mark.parametrize("clip_norm", [None, 0.05, 1e6])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_three_backwards_equal_three_local_optimizer_steps(name, clip_norm):
    spec, local_optimizer = OPTIMIZERS[name]
    layer = layer_of(
        OptimizerSpec(**{f: getattr(spec, f) for f in spec.__struct_fields__ if f != "clip_norm"}, clip_norm=clip_norm)
    )
    expert = Expert.create(UID, layer, "digits", CPU)
    local = build_expert(layer, "digits", UID)
    optimizer = local_optimizer(local.parameters())

    for step in range(1, 4):
        x, output_gradient = rows(), rows()
        found = expert.gradients(x, output_gradient)
        expert.step(found.of_parameters)

        local_x = x.clone().requires_grad_()
        optimizer.zero_grad()
        local(local_x).backward(output_gradient)
        torch.nn.utils.clip_grad_norm_(local.parameters(), clip_norm or math.inf)
        optimizer.step()

        torch.testing.assert_close(found.of_rows, local_x.grad, rtol=1e-10, atol=1e-12)
        for ours, theirs in zip(weights(expert), local.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-7, atol=1e-9)
        assert expert.updates == step


def test_a_frozen_expert_gives_gradients_and_never_changes():
    layer = layer_of(OptimizerSpec(name="frozen"))
    expert = Expert.create(UID, layer, "digits", CPU)
    before = weights(expert)
    x, output_gradient = rows(), rows()

    found = expert.gradients(x, output_gradient)
    expert.step(found.of_parameters)

    local_x = x.clone().requires_grad_()
    build_expert(layer, "digits", UID)(local_x).backward(output_gradient)
    torch.testing.assert_close(found.of_rows, local_x.grad, rtol=1e-10, atol=1e-12)
    assert all(map(torch.equal, before, weights(expert)))
    assert expert.updates == 0


def test_a_nop_returns_the_gradient_and_counts_no_step():
    expert = Expert.create(UID, layer_of(OptimizerSpec(), "nop"), "digits", CPU)
    x, output_gradient = rows(), rows()

    found = expert.gradients(x, output_gradient)
    expert.step(found.of_parameters)

    assert torch.equal(expert.forward(x), x)
    assert torch.equal(found.of_rows, output_gradient)
    assert expert.updates == 0


def test_gradients_change_nothing_until_the_step():
    expert = Expert.create(UID, layer_of(OptimizerSpec()), "digits", CPU)
    before = weights(expert)

    expert.gradients(rows(), rows())

    assert all(map(torch.equal, before, weights(expert)))
    assert expert.updates == 0


def test_a_gradient_that_overflows_never_reaches_the_weights():
    expert = Expert.create(UID, layer_of(OptimizerSpec()), "digits", CPU)
    before = weights(expert)

    with pytest.raises(ExpertFailed, match=r"ffn0\.1\.0: the gradient is not finite.*no step"):
        expert.gradients(rows() * 1e10, rows() * 1e305)

    assert all(map(torch.equal, before, weights(expert)))
    assert expert.updates == 0


def test_a_step_with_nan_is_refused_and_changes_nothing():
    expert = Expert.create(UID, layer_of(OptimizerSpec()), "digits", CPU)
    before = weights(expert)
    spoilt = [torch.full_like(parameter, math.nan) for parameter in before]

    with pytest.raises(ExpertFailed, match="not finite; no step was taken"):
        expert.step(spoilt)

    assert all(map(torch.equal, before, weights(expert)))
    assert expert.updates == 0


def test_an_output_that_overflows_is_an_error_not_an_answer():
    expert = Expert.create(UID, layer_of(OptimizerSpec(), "mlp"), "digits", CPU)
    with torch.no_grad():
        for parameter in expert.module.parameters():
            parameter.mul_(1e10)

    with pytest.raises(ExpertFailed, match="the output of these inputs is not finite"):
        expert.forward(rows() * 1e300)
