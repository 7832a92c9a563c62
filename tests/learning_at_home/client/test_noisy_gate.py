"""The noisy gate: its noise and jitter while training only, and the load loss through a layer."""

import copy
import math

import pytest
import torch
from torch import Tensor

import learning_at_home as lah
from learning_at_home.client.gating import MIN_DEVIATION, GatingFunction
from learning_at_home.client.mixture import importance_loss, load_loss
from learning_at_home.client.selection import CellIndex, best_cells, cell_scores
from tests.learning_at_home.client.small_swarm import FROZEN, layer, twice


def rows(number: int = 8) -> Tensor:
    return torch.randn(number, 6, dtype=torch.float64)


def test_noise_and_jitter_are_drawn_while_training_only():
    gate = GatingFunction(6, (2, 3), noisy=True, jitter=0.2, dtype=torch.float64)
    x = rows()

    torch.manual_seed(3)
    lines, noise = gate.noisy_line_scores(x)
    torch.manual_seed(3)
    jittered = x * torch.empty_like(x).uniform_(0.8, 1.2)
    drawn = torch.randn(8, 5, dtype=torch.float64)

    assert noise is not None
    torch.testing.assert_close(noise.clean_RL, gate.lines(jittered))
    torch.testing.assert_close(noise.deviation_RL, torch.full_like(lines, MIN_DEVIATION + math.log(2)))
    torch.testing.assert_close(lines, noise.clean_RL + drawn * noise.deviation_RL)
    assert gate.eval().noisy_line_scores(x)[1] is None
    torch.testing.assert_close(gate.line_scores(x), gate.lines(x))


def test_a_noisy_layer_chooses_and_weighs_by_the_noisy_scores_and_learns_its_noise(small_swarm):
    swarm = small_swarm(layer((2, 3), optimizer=FROZEN))
    grid = swarm.spec.cells
    swarm.add_wilful(range(6), lambda work, tensors: tensors[-1] * (1.0 + grid.cell(lah.ExpertUid.parse(work.uid))))
    dmoe = lah.DMoE(swarm.swarm, "ffn0", 2, noisy=True)
    gate = copy.deepcopy(dmoe.gate)
    x, index = rows(), CellIndex.of((2, 3), range(6))

    torch.manual_seed(4)
    y = dmoe(x)
    balance = dmoe.balance_loss()
    (y.square().sum() + balance).backward()

    torch.manual_seed(4)
    lines, noise = gate.noisy_line_scores(x)
    assert noise is not None
    cells = best_cells(lines.detach(), index, 2)
    weights = cell_scores(lines, (2, 3), cells).softmax(dim=1)
    expected = importance_loss(weights, cells, index.cells_N)
    expected = expected + load_loss(lines, noise.clean_RL, noise.deviation_RL, index, 2)
    ((x * (weights * (cells + 1)).sum(dim=1, keepdim=True)).square().sum() + expected).backward()
    torch.testing.assert_close(balance, expected)
    assert dmoe.gate.noise is not None
    assert gate.noise is not None
    torch.testing.assert_close(dmoe.gate.noise.weight.grad, gate.noise.weight.grad)
    torch.testing.assert_close(dmoe.gate.lines.weight.grad, gate.lines.weight.grad)
    assert dmoe.gate.noise.weight.grad is not None
    assert dmoe.gate.noise.weight.grad.any()
    assert list(dmoe.state_dict()) == ["gate.lines.weight", "gate.lines.bias", "gate.noise.weight"]


def test_the_load_loss_pulls_a_noisy_gate_towards_equal_use(small_swarm):
    swarm = small_swarm(layer((4,), optimizer=FROZEN))
    swarm.add_wilful(range(4), twice)
    dmoe = lah.DMoE(swarm.swarm, "ffn0", 1, noisy=True)
    with torch.no_grad():
        dmoe.gate.lines.bias[1] = 3.0
    optimizer = torch.optim.SGD(dmoe.gate.parameters(), lr=0.2)
    x = rows(64)

    losses = []
    for _ in range(15):
        dmoe(x)
        optimizer.zero_grad()
        loss = dmoe.balance_loss()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))

    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("jitter", [-0.1, 1.0])
def test_a_jitter_that_makes_no_sense_is_refused(jitter):
    with pytest.raises(lah.ConfigError, match="jitter"):
        GatingFunction(6, (2, 2), jitter=jitter)
