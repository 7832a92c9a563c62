"""A long training leaves nothing behind: memory, threads and descriptors of trainer and node stay as they are.

Some hundred steps; `LAH_FAULTS=full` runs 20,000.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass

import psutil
import pytest
import torch

from learning_at_home.client.dmoe import DMoE
from tests.faults.process_node import ProcessSwarm
from tests.faults.rounds import FULL, LIMIT_S
from tests.learning_at_home.client.small_swarm import layer

STEPS = 20_000 if FULL else 200
# Connections, allocators, what Adam keeps; and in the long round what a node remembers of backwards: 65,536 ids of one
# caller, four a step, and their table, which grows for the last time after 30,000 steps.
WARM_UP_STEPS = 32_000 if FULL else 40
# Allocators breathe, and in the short round a node's memory of backwards still fills, by 8 KB a step. That round finds
# what a step leaves from 50 KB on, the long one from 0.1 KB on.
MAX_GROWTH_BYTES = (2 if FULL else 10) * 1024 * 1024
ROWS, FEATURES = 32, 16
MAX_MORE_DESCRIPTORS = 3  # a connection that is being replaced; a discovery socket
PIPELINE_EVERY_STEPS = 100


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process holds."""

    memory_bytes: int
    threads: int
    descriptors: int

    @classmethod
    def of(cls, process: psutil.Process) -> Footprint:
        return cls(process.memory_info().rss, process.num_threads(), process.num_fds())


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S)
def test_a_long_training_leaves_nothing_behind_in_trainer_and_node():
    torch.manual_seed(0)
    spec = layer((2, 2), dtype="float32", hidden_size=FEATURES, deadline_s=20.0, grace_s=20.0)  # nobody is left behind
    with ProcessSwarm(spec) as nodes, nodes.connect() as swarm:
        model = torch.nn.Sequential(
            torch.nn.Linear(FEATURES, FEATURES), DMoE(swarm, "ffn0", 2), torch.nn.Linear(FEATURES, 1)
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        processes = {"trainer": psutil.Process(), "node": nodes.process()}

        def loss_of(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.mse_loss(model(x), x.sum(dim=1, keepdim=True))

        def train(steps: int) -> None:
            for number in range(steps):
                if number % PIPELINE_EVERY_STEPS == 0:
                    for _ in swarm.pipeline([torch.randn(ROWS, FEATURES)] * 4, model, loss_of, optimizer, in_flight=4):
                        pass
                loss = loss_of(model, torch.randn(ROWS, FEATURES))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                swarm.report(number, loss=loss)

        train(WARM_UP_STEPS)
        gc.collect()
        before = {name: Footprint.of(process) for name, process in processes.items()}
        train(STEPS)
        gc.collect()
        after = {name: Footprint.of(process) for name, process in processes.items()}
        assert swarm.stats().failures == 0

    print(before, after)
    for name in processes:
        assert after[name].threads <= before[name].threads, name
        assert after[name].descriptors <= before[name].descriptors + MAX_MORE_DESCRIPTORS, name
        assert after[name].memory_bytes <= before[name].memory_bytes + MAX_GROWTH_BYTES, name
