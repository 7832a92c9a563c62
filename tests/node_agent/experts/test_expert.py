"""A hosted expert does exactly what plain torch does with the same module."""

import math

import pytest
import torch
from torch import nn

from learning_at_home.errors import ExpertFailed
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec, OptimizerSpec
from node_agent.experts.architectures import build_expert
from node_agent.experts.expert import Expert
from node_agent.experts.gradients import Gradients

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
        expert.step(found.clipped(clip_norm))

        local_x = x.clone().requires_grad_()
        optimizer.zero_grad()
        local(local_x).backward(output_gradient)
        torch.nn.utils.clip_grad_norm_(local.parameters(), clip_norm or math.inf)
        optimizer.step()

        torch.testing.assert_close(found.of_rows, local_x.grad, rtol=1e-10, atol=1e-12)
        for ours, theirs in zip(weights(expert), local.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-7, atol=1e-9)
        assert expert.updates == step


class Tangled(nn.Module):
    """Its parameters' gradients share memory, lie transposed, or are the output's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(6, 6, dtype=torch.float64))
        self.second = nn.Parameter(torch.randn(36, dtype=torch.float64))
        self.third = nn.Parameter(torch.randn(6, 2, 3, dtype=torch.float64))
        self.added = nn.Parameter(torch.randn(1, 6, dtype=torch.float64))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        changed = rows @ (self.first.t() + self.second.view(6, 6))
        return changed + rows @ self.third.permute(1, 2, 0).reshape(6, 6) + self.added


def test_gradients_that_share_memory_are_clipped_and_stepped_as_torch_does():
    expert = Expert(UID, layer_of(OptimizerSpec(name="sgd", learning_rate=0.1, clip_norm=0.05)), Tangled(), CPU)
    local = Tangled()
    local.load_state_dict(expert.module.state_dict())
    optimizer = torch.optim.SGD(local.parameters(), 0.1)

    for _ in range(3):
        x, output_gradient = rows(1), rows(1)
        kept = output_gradient.clone()
        found = expert.gradients(x, output_gradient)
        expert.step(found.clipped(0.05))

        local_x = x.clone().requires_grad_()
        optimizer.zero_grad()
        local(local_x).backward(output_gradient)
        torch.nn.utils.clip_grad_norm_(local.parameters(), 0.05)
        optimizer.step()

        assert torch.equal(output_gradient, kept)
        torch.testing.assert_close(found.of_rows, local_x.grad)
        for ours, theirs in zip(weights(expert), local.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-7, atol=1e-9)


def test_a_frozen_expert_gives_gradients_and_never_changes():
    layer = layer_of(OptimizerSpec(name="frozen"))
    expert = Expert.create(UID, layer, "digits", CPU)
    before = weights(expert)
    x, output_gradient = rows(), rows()

    found = expert.gradients(x, output_gradient)
    expert.step(found)

    local_x = x.clone().requires_grad_()
    build_expert(layer, "digits", UID)(local_x).backward(output_gradient)
    torch.testing.assert_close(found.of_rows, local_x.grad, rtol=1e-10, atol=1e-12)
    assert all(map(torch.equal, before, weights(expert)))
    assert expert.updates == 0


def test_a_nop_returns_the_gradient_and_counts_no_step():
    expert = Expert.create(UID, layer_of(OptimizerSpec(), "nop"), "digits", CPU)
    x, output_gradient = rows(), rows()

    found = expert.gradients(x, output_gradient)
    expert.step(found)

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


@pytest.mark.parametrize("norm", [math.nan, math.inf, 2e154])
def test_a_step_whose_squares_overflow_is_refused_and_changes_nothing(norm):
    expert = Expert.create(UID, layer_of(OptimizerSpec()), "digits", CPU)
    before = weights(expert)
    spoilt = Gradients(rows(), tuple(torch.full_like(parameter, math.nan) for parameter in before), norm)

    with pytest.raises(ExpertFailed, match=r"norm, .*, is too large for an optimizer of float64; no step was taken"):
        expert.step(spoilt)

    assert all(map(torch.equal, before, weights(expert)))
    assert expert.updates == 0


def test_a_large_finite_gradient_is_clipped_like_any_other():
    """Its squares are no float32 numbers; torch's own norm of it is infinite."""
    layer = LayerSpec(prefix="ffn0", grid=(2, 2), architecture="mlp", hidden_size=6)
    expert = Expert.create(UID, layer, "digits", CPU)
    x, output_gradient = rows().float(), rows().float()

    large = expert.gradients(x, output_gradient * 1e30).clipped(1.0)

    small = expert.gradients(x, output_gradient)
    for ours, theirs in zip(large.of_parameters, small.clipped(small.norm * 0.5).of_parameters, strict=True):
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours, theirs / (small.norm * 0.5))
    assert large.norm == pytest.approx(1.0)


def test_an_output_is_given_as_it_is():
    expert = Expert.create(UID, layer_of(OptimizerSpec(), "mlp"), "digits", CPU)

    assert not torch.isfinite(expert.forward(rows() * math.inf)).any()
