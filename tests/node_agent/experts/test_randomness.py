"""Dropout is the same for a request's forward and for its recomputation, whoever computes beside it."""

import pytest
import torch
from torch import Tensor, nn

from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec, OptimizerSpec, ProjectRecord
from node_agent.experts import architectures
from node_agent.experts.activations import Activations
from node_agent.experts.architectures import build_expert, register_expert
from node_agent.experts.expert import Expert
from node_agent.experts.hosted import HostedExperts
from node_agent.experts.randomness import seed_of
from node_agent.runtime.computation import compute
from node_agent.runtime.outcomes import Outcome

CPU = torch.device("cpu")
UID = ExpertUid("ffn0", (0,))
HIDDEN = 16
PROJECT = "digits"


class Dropping(nn.Module):
    """Two dropouts, so that a difference of one number shows in both."""

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        size = layer.hidden_size
        self.layers = nn.Sequential(nn.Linear(size, 32), nn.Dropout(0.5), nn.Linear(32, size), nn.Dropout(0.2))

    def forward(self, rows: Tensor) -> Tensor:
        answer: Tensor = self.layers(rows)
        return answer


class Noisy(nn.Module):
    """Draws without any of torch's dropouts."""

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(layer.hidden_size, layer.hidden_size)

    def forward(self, rows: Tensor) -> Tensor:
        answer: Tensor = self.linear(rows * torch.rand_like(rows))
        return answer


@pytest.fixture(params=[Dropping, Noisy])
def layer(request):
    """Of an expert that draws random numbers."""
    before = dict(architectures._registry)
    register_expert("random")(request.param)
    optimizer = OptimizerSpec(name="sgd", learning_rate=0.1, clip_norm=0.5)
    yield LayerSpec(
        prefix="ffn0", grid=(2,), architecture="random", hidden_size=HIDDEN, dtype="float64", optimizer=optimizer
    )
    architectures._registry.clear()
    architectures._registry.update(before)


def drawn(number: int) -> tuple[Tensor, Tensor]:
    rows, gradient = torch.randn(2, number, HIDDEN, dtype=torch.float64)
    return rows, gradient


def tensors(outcomes: list[Outcome]) -> list[Tensor]:
    found = [outcome for outcome in outcomes if isinstance(outcome, Tensor)]
    assert len(found) == len(outcomes)
    return found


class Local:
    """The same network in plain torch, with the numbers that a request's rows stand for."""

    def __init__(self, layer: LayerSpec) -> None:
        self.module = build_expert(layer, PROJECT, UID).train()

    def forward(self, rows: Tensor) -> Tensor:
        torch.manual_seed(seed_of(str(UID), rows))
        answer: Tensor = self.module(rows)
        return answer

    def backward(self, requests: list[tuple[Tensor, Tensor]]) -> list[Tensor | None]:
        """The gradients of the rows, after one step by the sum of clipped gradients."""
        total = [torch.zeros_like(parameter) for parameter in self.module.parameters()]
        found = []
        for rows, gradient in requests:
            leaf = rows.clone().requires_grad_()
            self.module.zero_grad()
            self.forward(leaf).backward(gradient)
            nn.utils.clip_grad_norm_(self.module.parameters(), 0.5)
            for whole, parameter in zip(total, self.module.parameters(), strict=True):
                assert parameter.grad is not None
                whole += parameter.grad
            found.append(leaf.grad)
        with torch.no_grad():
            for whole, parameter in zip(total, self.module.parameters(), strict=True):
                parameter.sub_(whole, alpha=0.1)
        return found


@pytest.mark.parametrize("sizes", [[3], [1], [2, 5, 1]], ids=["alone", "one row", "beside others"])
@pytest.mark.parametrize("limit_bytes", [0, 1 << 20], ids=["computed again", "remembered"])
def test_forward_and_backward_have_the_mask_of_the_request(layer, sizes, limit_bytes):
    expert, local = Expert.create(UID, layer, PROJECT, CPU), Local(layer)
    expert.activations, expert.forward_flop_per_row = Activations(limit_bytes), 1 << 40
    requests = [drawn(number) for number in sizes]

    outputs = tensors(compute(expert, "forward", [(rows,) for rows, _ in requests]))
    if limit_bytes and len(sizes) == 1:
        assert expert.activations.num_bytes
    torch.manual_seed(9)  # whatever others draw meanwhile
    torch.rand(3)
    of_rows = tensors(compute(expert, "backward", requests))

    for (rows, _), output in zip(requests, outputs, strict=True):
        assert torch.equal(output, local.forward(rows))
    for ours, theirs in zip(of_rows, local.backward(requests), strict=True):
        assert theirs is not None
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(expert.module.parameters(), local.module.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_request_meets_the_same_mask_alone_and_beside_others(layer):
    expert = Expert.create(UID, layer, PROJECT, CPU)
    (rows, gradient), other = drawn(4), drawn(2)
    frozen = Expert.create(UID, layer, PROJECT, CPU)

    alone = compute(expert, "forward", [(rows,)])
    beside = compute(expert, "forward", [(other[0],), (rows,)])
    gradient_alone = compute(frozen, "backward", [(rows, gradient)])
    gradient_beside = compute(expert, "backward", [other, (rows, gradient)])

    assert torch.equal(tensors(alone)[0], tensors(beside)[1])
    assert torch.equal(tensors(gradient_alone)[0], tensors(gradient_beside)[1])


def test_other_rows_and_other_experts_meet_other_masks(layer):
    rows = torch.ones(2, HIDDEN, dtype=torch.float64)

    seeds = {seed_of("ffn0.0", rows), seed_of("ffn0.1", rows), seed_of("ffn0.0", rows * 2), seed_of("ffn0.0", rows[:1])}

    assert len(seeds) == 4


def test_computing_leaves_the_random_numbers_of_the_process_alone(layer):
    expert = Expert.create(UID, layer, PROJECT, CPU)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)

    compute(expert, "backward", [drawn_from(5), drawn_from(6)])

    assert torch.equal(torch.rand(4), expected)


def drawn_from(seed: int) -> tuple[Tensor, Tensor]:
    """Without the generator of the process."""
    random = torch.Generator().manual_seed(seed)
    rows, gradient = torch.randn(2, 3, HIDDEN, dtype=torch.float64, generator=random)
    return rows, gradient


def test_experts_that_draw_are_never_grouped(layer):
    project = ProjectRecord(id=PROJECT, layers=(layer,))

    hosted = HostedExperts.create([ExpertUid("ffn0", (cell,)) for cell in range(2)], project, CPU, "on")

    assert all(expert.is_random for expert in hosted.by_uid.values())
    assert hosted.group_of("ffn0.0", "forward") is None


def test_experts_that_draw_nothing_are_known_as_such():
    layer = LayerSpec(prefix="ffn0", grid=(2,), architecture="transformer", hidden_size=HIDDEN, sequence_length=3)

    assert not Expert.create(UID, layer, PROJECT, CPU).is_random


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_too_forward_and_backward_have_the_mask_of_the_request(layer):
    expert = Expert.create(UID, layer, PROJECT, torch.device("cuda:0"))
    rows, gradient = drawn(4)
    leaf = rows.cuda().requires_grad_()
    with expert.numbers_for(rows):
        expected = expert.module(leaf)

    output = tensors(compute(expert, "forward", [(drawn(2)[0],), (rows,)]))[1]
    of_rows = tensors(compute(expert, "backward", [(rows, gradient)]))[0]

    assert torch.equal(output, expected.detach().cpu())
    torch.testing.assert_close(of_rows, torch.autograd.grad(expected, leaf, gradient.cuda())[0].cpu())
