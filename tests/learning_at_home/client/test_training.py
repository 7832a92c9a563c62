"""A DMoE trained on real nodes: found through the DHT, killed and stopped on the way."""

import time
from dataclasses import replace

import pytest
import torch

from learning_at_home.client.dmoe import DMoE
from learning_at_home.client.swarm import Swarm
from learning_at_home.errors import NotEnoughExperts
from learning_at_home.project import OptimizerSpec, ProjectRecord
from node_agent.testing.local_swarm import LocalSwarm
from tests.learning_at_home.client.small_swarm import layer

STEPS = 60
DEADLINE_S = 4.0


def project(**changes: object) -> ProjectRecord:
    optimizer = OptimizerSpec(name="adam", learning_rate=3e-3)
    spec = layer((4, 4), hidden_size=16, dtype="float32", optimizer=optimizer, deadline_s=DEADLINE_S, **changes)
    return ProjectRecord(id="test", layers=(spec,))


class Task:
    """Regression that no linear model can do: y is the product of two inputs."""

    def __init__(self, swarm: Swarm) -> None:
        self.dmoe = DMoE(swarm, "ffn0", 4)
        self.model = torch.nn.Sequential(torch.nn.Linear(2, 16), self.dmoe, torch.nn.Linear(16, 1))
        own = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(own, lr=0.01)

    def step(self) -> float:
        x = torch.rand(32, 2) * 2 - 1
        loss = torch.nn.functional.mse_loss(self.model(x), x.prod(dim=1, keepdim=True))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def mean_loss(self, steps: int) -> float:
        return sum(self.step() for _ in range(steps)) / steps


@pytest.mark.slow
def test_experts_found_through_the_dht_learn_and_two_trainers_share_them():
    with (
        LocalSwarm(project(), num_nodes=2, in_process=True) as nodes,
        Swarm.connect(bootstrap=nodes.bootstrap, project=nodes.project) as alice,
        Swarm.connect(bootstrap=nodes.bootstrap, project=nodes.project) as bob,
    ):
        alice.wait_until_alive()
        bob.wait_until_alive()
        first, second = Task(alice), Task(bob)
        before = first.mean_loss(5)
        for _ in range(STEPS):
            first.step()
            second.step()

        assert first.mean_loss(5) < 0.5 * before
        assert sum(nodes.expert(uid).updates for uid in project().layers[0].cells.uids("ffn0")) > STEPS
        assert alice.stats().failures == bob.stats().failures == 0
        assert len(alice.stats().nodes) == 2


@pytest.mark.slow
def test_training_survives_a_killed_and_a_stopped_node():
    """Three nodes as processes: one is killed, one is stopped and woken; no exception reaches the loop."""
    with (
        LocalSwarm(project(), num_nodes=3) as nodes,
        Swarm.connect(bootstrap=nodes.bootstrap, project=nodes.project) as swarm,
    ):
        swarm.wait_until_alive()
        task = Task(swarm)
        before = task.mean_loss(5)
        task.mean_loss(STEPS)

        nodes.kill(0)
        started = time.monotonic()
        task.step()
        assert time.monotonic() - started < DEADLINE_S, "a killed node answers by its broken connections"
        nodes.stop(1)
        started = time.monotonic()
        task.step()
        assert time.monotonic() - started < 2 * DEADLINE_S, "silence costs patience and grace, not a deadline each way"
        task.mean_loss(10)
        nodes.cont(1)
        task.mean_loss(STEPS)

        assert task.mean_loss(5) < 0.5 * before
        assert swarm.stats().zero_gradient_rows < 3 * 32


@pytest.mark.slow
def test_with_every_node_stopped_the_error_is_clear_and_training_resumes_when_they_wake():
    """Silence (SIGSTOP), in which nothing tells that anybody is gone."""
    with (
        LocalSwarm(project(), num_nodes=1) as nodes,
        Swarm.connect(bootstrap=nodes.bootstrap, project=nodes.project) as swarm,
    ):
        swarm.wait_until_alive()
        task = Task(swarm)
        task.dmoe.terms = replace(task.dmoe.terms, deadline_s=1.0)
        task.step()
        nodes.stop(0)

        started = time.monotonic()
        with pytest.raises(NotEnoughExperts, match=r"layer ffn0, forward: 32 of 32 rows.*no answer"):
            task.step()
        assert time.monotonic() - started < 1.0 + 1.5

        nodes.cont(0)
        back = time.monotonic()
        while True:
            try:
                task.step()
                break
            except NotEnoughExperts:
                assert time.monotonic() - back < 30.0, "a woken node is tried again"


@pytest.mark.slow
def test_with_every_node_dead_the_error_is_clear_and_training_resumes_when_they_are_back():
    with (
        LocalSwarm(project(), num_nodes=2, in_process=True) as nodes,
        Swarm.connect(bootstrap=nodes.bootstrap, project=nodes.project) as swarm,
    ):
        swarm.wait_until_alive()
        task = Task(swarm)
        task.step()
        nodes.kill(0)
        nodes.kill(1)

        started = time.monotonic()
        with pytest.raises(NotEnoughExperts, match="layer ffn0"):
            task.step()
        assert time.monotonic() - started < DEADLINE_S + 1.5

        nodes.restart(0)
        back = time.monotonic()
        while True:
            try:
                task.step()
                break
            except NotEnoughExperts:
                assert time.monotonic() - back < 30.0, "the directory is asked every 3 s while nobody is alive"
