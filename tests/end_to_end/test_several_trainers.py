"""Two trainers of one project on real nodes: they come to one model, and a node that is lost sets nobody back."""

import threading
import time

import pytest
import torch
from torch import nn

import learning_at_home as lah
from learning_at_home.project import LayerSpec, OptimizerSpec, ProjectRecord
from node_agent.testing import LocalSwarm

DEADLINE_S = 20.0
PROJECT = ProjectRecord(
    id="several",
    layers=(
        LayerSpec(prefix="ffn0", grid=(2, 2), hidden_size=8, optimizer=OptimizerSpec(learning_rate=1e-2)),
        LayerSpec(
            prefix="trunk",
            grid=(3,),
            architecture="parameters",
            hidden_size=50,
            optimizer=OptimizerSpec(name="sgd", learning_rate=1.0),
        ),
    ),
)


class Trainer:
    """Learns to return its input, on a swarm connection of its own."""

    def __init__(self, swarm: lah.Swarm, seed: int, every: int = 5) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(lah.DMoE(swarm, layer="ffn0", k_best=2), nn.Linear(8, 8))
        self.shared = swarm.shared("trunk", self.model, every=every)
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        self._random = torch.Generator().manual_seed(seed)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            x = torch.randn(16, 8, generator=self._random)
            self._optimizer.zero_grad()
            (self.model(x) - x).square().mean().backward()
            self._optimizer.step()
            self.shared.step()

    def loss(self) -> float:
        x = torch.randn(256, 8, generator=torch.Generator().manual_seed(99))
        with torch.no_grad():
            return float((self.model(x) - x).square().mean())

    def numbers(self) -> torch.Tensor:
        return torch.cat([parameter.detach().reshape(-1) for parameter in self.model.parameters()]).clone()


@pytest.mark.slow
def test_two_trainers_make_one_model_that_survives_a_node_and_a_trainer():
    def connect() -> lah.Swarm:
        swarm = lah.Swarm.connect(bootstrap=nodes.bootstrap, project=PROJECT)
        swarm.wait_until_alive()
        return swarm

    with LocalSwarm(PROJECT, 2, in_process=True) as nodes, connect() as one, connect() as two:
        alice, bob = Trainer(one, 1), Trainer(two, 2)
        assert torch.equal(alice.numbers(), bob.numbers())
        untrained = alice.loss()

        threads = [threading.Thread(target=trainer.train, args=(30,), daemon=True) for trainer in (alice, bob)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert alice.shared.sync()
        assert bob.shared.sync()
        assert alice.shared.sync()
        assert torch.equal(alice.numbers(), bob.numbers())
        assert alice.loss() < 0.7 * untrained

        nodes.kill(0)
        nodes.restart(0)  # with the same key, and nothing of what it held
        deadline = time.monotonic() + DEADLINE_S
        while not alice.shared.sync():
            assert time.monotonic() < deadline, alice.shared.stats()
        assert alice.shared.stats().fills > 0
        assert torch.equal(alice.numbers(), bob.numbers())

        with connect() as three:  # bob is gone; whoever comes instead goes on from where they were
            carol = Trainer(three, 3)
            assert torch.equal(carol.numbers(), alice.numbers())
