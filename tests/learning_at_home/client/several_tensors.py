"""A layer of experts with several inputs and outputs: an LSTM cell over a sequence, which stands still where masked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from learning_at_home.project import LayerSpec
from node_agent.experts import architectures
from node_agent.experts.architectures import register_expert
from tests.learning_at_home.client.small_swarm import SGD, layer

LENGTH, SIZE = 3, 4
SCHEMA = (
    f"(float[{LENGTH}, {SIZE}], mask=bool[{LENGTH}], state=(float[{SIZE}], {{cell: float[{SIZE}]}})) -> "
    f"(float[{LENGTH}, {SIZE}], {{hidden: float[{SIZE}], cell: float[{SIZE}]}})"
)
State = tuple[Tensor, dict[str, Tensor]]


class MaskedLstm(nn.Module):
    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(SIZE, SIZE)

    def forward(self, rows: Tensor, *, mask: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        assert mask.dtype == torch.bool
        hidden, cell = state[0], state[1]["cell"]
        outputs = []
        for step in range(LENGTH):
            moved, changed = self.cell(rows[:, step], (hidden, cell))
            here = mask[:, step : step + 1]
            hidden, cell = torch.where(here, moved, hidden), torch.where(here, changed, cell)
            outputs.append(hidden)
        return torch.stack(outputs, 1), {"cell": cell, "hidden": hidden}


class Embedding(nn.Module):
    """Takes no floats at all."""

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        self.table = nn.Embedding(10, SIZE)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.table(tokens).mean(1)
        return found


class Scaled(nn.Module):
    """One output like the first input."""

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(SIZE, SIZE)

    def forward(self, rows: Tensor, factor: Tensor, use: Tensor) -> Tensor:
        scaled: Tensor = self.linear(rows) * factor.unsqueeze(1)
        return torch.where(use.unsqueeze(1) > 0, scaled, rows)


SCHEMAS = {
    "masked-lstm": SCHEMA,
    "embedding": f"(int64[{LENGTH}]) -> float[{SIZE}]",
    "scaled": f"(float[{SIZE}], factor=float[], use=int32[]) -> float[{SIZE}]",
}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Import it, too."""
    before = dict(architectures._registry)
    register_expert("masked-lstm")(MaskedLstm)
    register_expert("embedding")(Embedding)
    register_expert("scaled")(Scaled)
    yield
    architectures._registry.clear()
    architectures._registry.update(before)


def several(architecture: str = "masked-lstm", grid: tuple[int, ...] = (3,), **changes: object) -> LayerSpec:
    """A float64 layer, SGD with rate 0.1."""
    fields: dict[str, object] = {"architecture": architecture, "schema": SCHEMAS[architecture], "optimizer": SGD}
    return layer(grid, **{**fields, **changes})


def draw(*leading: int, seed: int = 0) -> tuple[Tensor, Tensor, State]:
    """Rows, a mask and a state in these leading dimensions; the floats ask for gradients."""
    random = torch.Generator().manual_seed(seed)

    def floats(*shape: int) -> Tensor:
        return torch.randn(*leading, *shape, generator=random, dtype=torch.float64).requires_grad_()

    mask = torch.rand(*leading, LENGTH, generator=random) > 0.4
    return floats(LENGTH, SIZE), mask, (floats(SIZE), {"cell": floats(SIZE)})


def floats_of(drawn: tuple[Tensor, Tensor, State]) -> list[Tensor]:
    rows, _, (hidden, rest) = drawn
    return [rows, hidden, rest["cell"]]
