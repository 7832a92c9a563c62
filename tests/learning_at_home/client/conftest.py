"""Swarms in one process, closed after each test."""

from collections.abc import Callable, Iterator

import pytest
import torch

from learning_at_home.project import LayerSpec
from tests.learning_at_home.client.small_swarm import SmallSwarm


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def small_swarm() -> Iterator[Callable[[LayerSpec], SmallSwarm]]:
    """Makes swarms without nodes."""
    made: list[SmallSwarm] = []

    def make(spec: LayerSpec) -> SmallSwarm:
        made.append(SmallSwarm(spec))
        return made[-1]

    yield make
    for swarm in made:
        swarm.close()
