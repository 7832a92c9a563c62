"""A model's eval() reaches the experts' dropout: float64, real nodes, against local modules in evaluation mode."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from learning_at_home.client.dmoe import DMoE
from learning_at_home.client.remote_expert import RemoteExpert
from learning_at_home.project import LayerSpec
from node_agent.experts import architectures
from node_agent.experts.architectures import register_expert
from node_agent.runtime.host import Host
from tests.learning_at_home.client.small_swarm import SGD, SmallSwarm, layer


class Dropping(nn.Module):
    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        size = layer.hidden_size
        self.layers = nn.Sequential(nn.Linear(size, 16), nn.Dropout(0.5), nn.Linear(16, size))

    def forward(self, rows: Tensor) -> Tensor:
        answer: Tensor = self.layers(rows)
        return answer


@pytest.fixture
def small() -> Iterator[SmallSwarm]:
    before = dict(architectures._registry)
    register_expert("dropping")(Dropping)
    small = SmallSwarm(layer((2,), architecture="dropping", optimizer=SGD))
    small.add_host([0, 1])
    yield small
    small.close()
    architectures._registry.clear()
    architectures._registry.update(before)


def drawn() -> Tensor:
    return torch.randn(5, 6, dtype=torch.float64, requires_grad=True)


def test_an_expert_in_evaluation_is_the_local_module_in_evaluation(small: SmallSwarm) -> None:
    expert, local, x = RemoteExpert(small.swarm, "ffn0.0").eval(), small.local(0).eval(), drawn()
    expected = local(x)
    y = expert(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(
        torch.autograd.grad(y.square().sum(), x)[0], torch.autograd.grad(expected.square().sum(), x)[0]
    )
    with torch.no_grad():
        assert torch.equal(expert(x), y)
        assert not torch.equal(expert.train()(x), y)
    assert torch.equal(asyncio.run(expert.eval().acall(x.detach())), y)
    (host,) = small.nodes
    assert isinstance(host, Host)
    assert host.experts.find("ffn0.0").updates == 0


def test_a_layer_in_evaluation_is_the_local_mixture_in_evaluation(small: SmallSwarm) -> None:
    dmoe, x = DMoE(small.swarm, "ffn0", 2).eval(), drawn()
    weights_R2 = dmoe.gate.line_scores(x).softmax(1)
    local = sum(weights_R2[:, cell : cell + 1] * small.local(cell).eval()(x) for cell in range(2))
    assert isinstance(local, Tensor)
    y = dmoe(x)
    torch.testing.assert_close(y, local)
    wanted = [x, *dmoe.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(y.square().sum(), wanted), torch.autograd.grad(local.square().sum(), wanted), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    assert not torch.equal(dmoe.train()(x), y)


def test_evaluating_the_same_rows_between_forward_and_backward_hides_no_staleness(small: SmallSwarm) -> None:
    expert, x = RemoteExpert(small.swarm, "ffn0.0"), drawn()
    y = expert(x)
    expert.eval()(x).sum().backward()
    assert small.swarm.stats().staleness_max is None
    y.sum().backward()
    assert small.swarm.stats().staleness_max == 0
    (host,) = small.nodes
    assert isinstance(host, Host)
    assert host.drain(5.0)  # it counts when it has answered
    assert host.statistics.staleness(time.monotonic()) == {0: 1}
