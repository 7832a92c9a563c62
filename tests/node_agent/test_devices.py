"""The device that a flag names, on machines with and without GPUs."""

import pytest
import torch

from learning_at_home.errors import ConfigError
from node_agent.devices import find_device


@pytest.fixture
def gpus(monkeypatch):
    """`gpus(2)`: this machine has two."""

    def have(number: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)

    return have


@pytest.mark.parametrize(
    "number,name,device",
    [
        (0, "auto", "cpu"),
        (2, "auto", "cuda:0"),
        (2, "cpu", "cpu"),
        (2, "cuda", "cuda:0"),
        (2, "cuda:1", "cuda:1"),
    ],
)
def test_a_name_is_a_device(gpus, number, name, device):
    gpus(number)

    assert find_device(name) == torch.device(device)


@pytest.mark.parametrize(
    "number,name,words",
    [
        (0, "cuda", "no GPU that this PyTorch can use; --device cpu always works"),
        (2, "cuda:2", "this machine has cuda:0, cuda:1"),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_those_that_are(gpus, number, name, words):
    gpus(number)

    with pytest.raises(ConfigError, match=words):
        find_device(name)
