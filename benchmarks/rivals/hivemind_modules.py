"""The experts of our benchmarks as hivemind's servers take them: the same networks, so that both do the same work."""

from __future__ import annotations

import torch
from hivemind.moe.server.layers import name_to_block, name_to_input
from torch import Tensor, nn

INNER_FACTOR = 4
WEIGHTS_SEED = 1  # of every expert: the client makes the same weights to check the answers with


class Nop(nn.Module):
    """Returns its input; one unused parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, rows: Tensor) -> Tensor:
        return rows.clone()  # as hivemind's own nop does: its runtime must not answer with a view of the question


def build(architecture: str, hidden_size: int) -> nn.Module:
    """A network with the weights that every expert starts from."""
    if architecture == "nop":
        return Nop()
    if architecture != "mlp":
        raise ValueError(f"no such architecture: {architecture}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(WEIGHTS_SEED)
        inner = INNER_FACTOR * hidden_size
        return nn.Sequential(nn.Linear(hidden_size, inner), nn.ReLU(), nn.Linear(inner, hidden_size))


def register(architecture: str) -> str:
    """The name under which hivemind knows it."""
    name = f"benchmark_{architecture}"
    name_to_block[name] = lambda hidden_size: build(architecture, hidden_size)
    name_to_input[name] = lambda num_rows, hidden_size: torch.empty(num_rows, hidden_size)
    return name
