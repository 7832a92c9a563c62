"""SwitchDMoE against a local mixture in float64, and what its options do to the choice. Real sockets."""

import copy
from collections import Counter

import pytest
import torch
from torch import Tensor

import learning_at_home as lah
from learning_at_home.client.gating import GatingFunction
from learning_at_home.client.selection import CellIndex, best_cells, cell_scores
from learning_at_home.errors import ConfigError, ExpertFailed
from tests.learning_at_home.client.small_swarm import FROZEN, SGD, SmallSwarm, WilfulNode, layer, twice


def rows(number: int = 8, size: int = 6) -> Tensor:
    return torch.randn(number, size, dtype=torch.float64)


def steered(switch: lah.SwitchDMoE) -> Tensor:
    """Rows of a 1-dimensional grid of up to 6 lines that each name their cell: row i prefers cell x[i].argmax()."""
    with torch.no_grad():
        switch.gate.lines.weight.copy_(torch.eye(6)[: len(switch.gate.lines.weight)])
        switch.gate.lines.bias.zero_()
    return switch.gate.lines.weight


def local_switch(
    gate: GatingFunction, experts: dict[int, torch.nn.Module], x: Tensor, lines: Tensor, cells: list[int]
) -> Tensor:
    """x + p (E(x) - x), each row with the expert of its cell; a row of cell -1 passes."""
    living = sorted(experts)
    probabilities = cell_scores(lines, gate.grid.shape, torch.tensor(living).expand(len(x), -1)).softmax(dim=1)
    y = []
    for row, cell in enumerate(cells):
        if cell < 0:
            y.append(x[row])
        else:
            p = probabilities[row, living.index(cell)]
            y.append(x[row] + p * (experts[cell](x[row : row + 1])[0] - x[row]))
    return torch.stack(y)


def asked_rows(nodes: list[WilfulNode], operation: str = "forward") -> Counter[str]:
    count: Counter[str] = Counter()
    for node in nodes:
        for work in node.seen:
            if work.operation == operation:
                count[work.uid] += work.tensors[0].shape[0]
    return count


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grid", [(4,), (2, 3)])
def test_output_gradients_and_updates_equal_a_local_mixture(small_swarm, grid, training):
    swarm = small_swarm(layer(grid))
    num_cells = swarm.spec.cells.num_cells
    hosts = [swarm.add_host(range(1, num_cells, 2)), swarm.add_host(range(2, num_cells, 2))]  # cell 0 is dead
    locals_ = {cell: swarm.local(cell) for cell in range(1, num_cells)}
    switch = lah.SwitchDMoE(swarm.swarm, "ffn0", jitter=0.1, capacity_factor=None).train(training)
    gate = copy.deepcopy(switch.gate)
    x, head = rows().requires_grad_(), rows()
    x_local = x.detach().clone().requires_grad_()

    torch.manual_seed(1)
    y = switch(x)
    loss = switch.balance_loss()
    ((y * head).sum() + loss).backward()

    torch.manual_seed(1)
    factor = torch.empty_like(x).uniform_(0.9, 1.1) if training else torch.ones_like(x)
    lines = gate.lines(x_local * factor)
    cells = best_cells(lines, CellIndex.of(grid, sorted(locals_)), 1).squeeze(1).tolist()
    y_local = local_switch(gate, locals_, x_local, lines, cells)
    all_p = cell_scores(lines, gate.grid.shape, torch.tensor(sorted(locals_)).expand(len(x), -1)).softmax(dim=1)
    shares = torch.tensor([cells.count(cell) / len(x) for cell in sorted(locals_)], dtype=x.dtype)
    loss_local = len(locals_) * (shares * all_p.mean(dim=0)).sum()
    ((y_local * head).sum() + loss_local).backward()

    torch.testing.assert_close(y, y_local)
    torch.testing.assert_close(loss, loss_local)
    torch.testing.assert_close(x.grad, x_local.grad)
    torch.testing.assert_close(switch.gate.lines.weight.grad, gate.lines.weight.grad)
    torch.testing.assert_close(switch.gate.lines.bias.grad, gate.lines.bias.grad)
    assert not switch.passed.any()
    for host in hosts:
        assert host.drain(5.0)
        for expert in host.experts.by_uid.values():
            local = locals_[swarm.spec.cells.cell(expert.uid)]
            if training:
                torch.optim.SGD(local.parameters(), lr=SGD.learning_rate).step()
            for updated, parameter in zip(expert.module.parameters(), local.parameters(), strict=True):
                torch.testing.assert_close(updated, parameter)


def test_gradcheck_passes_with_frozen_experts_rows_that_pass_and_a_failed_one(small_swarm):
    """One row finds its expert failing and goes to the next best, two are over capacity and pass through."""
    swarm = small_swarm(layer((3,), optimizer=FROZEN))
    swarm.add_wilful([2], lambda work, tensors: ExpertFailed("out of luck"))
    swarm.add_host([0, 1])
    switch = lah.SwitchDMoE(swarm.swarm, "ffn0", jitter=0.0, capacity_factor=1.0, overflow="pass")
    steered(switch)
    x = (3 * torch.eye(6, dtype=torch.float64)[[0, 0, 0, 1, 2]] + 0.1 * rows(5)).requires_grad_()
    parameters = (switch.gate.lines.weight, switch.gate.lines.bias)

    def function(x: Tensor, *_: Tensor) -> Tensor:
        return switch(x)

    assert torch.autograd.gradcheck(function, (x, *parameters))
    assert int(switch.passed.sum()) == 1, "ceil(5 / 3) rows of three find room"


def test_rows_over_capacity_pass_through_unchanged_with_their_gradient(small_swarm):
    swarm = small_swarm(layer((4,)))
    node = swarm.add_wilful([0, 1, 2, 3], twice)
    switch = lah.SwitchDMoE(swarm.swarm, "ffn0", jitter=0.0, capacity_factor=1.0, overflow="pass")
    steered(switch)
    strength = torch.tensor([1.0, 4.0, 2.0, 3.0], dtype=torch.float64)
    x = torch.zeros(2, 4, 6, dtype=torch.float64)
    x[..., 1] = strength * torch.tensor([[1.0], [5.0]])
    x.requires_grad_()

    y = switch(x)
    y.sum().backward()

    passed = switch.passed
    assert passed.tolist() == [[True] * 4, [True, False, True, False]], "ceil(8 / 4) rows fit, the most certain ones"
    torch.testing.assert_close(y[passed], x[passed], rtol=0, atol=0)
    assert x.grad is not None
    torch.testing.assert_close(x.grad[passed], torch.ones(6, 6, dtype=torch.float64), rtol=0, atol=0)
    assert (y[~passed] != x[~passed]).any(dim=1).all()
    assert asked_rows([node]) == {"ffn0.1": 2}
    assert swarm.swarm.stats().passed_rows == 6
    assert swarm.swarm.stats().zero_gradient_rows == 0


def test_rows_over_capacity_go_to_the_next_best_expert_with_room(small_swarm):
    swarm = small_swarm(layer((4,)))
    node = swarm.add_wilful([0, 1, 2, 3], twice)
    switch = lah.SwitchDMoE(swarm.swarm, "ffn0", jitter=0.0, capacity_factor=1.0)
    steered(switch)
    x = torch.zeros(8, 6, dtype=torch.float64)
    x[:, 1], x[:, 3] = 2.0, 1.0

    switch(x)

    assert asked_rows([node]) == {"ffn0.0": 2, "ffn0.1": 2, "ffn0.2": 2, "ffn0.3": 2}
    assert not switch.passed.any()
    switch.eval()(x)
    assert asked_rows([node], "eval_forward")["ffn0.1"] == 8, "in eval there is no limit"


def test_a_host_that_tells_of_a_long_queue_gets_fewer_rows(small_swarm):
    swarm = small_swarm(layer((2,)))
    busy, idle = swarm.add_wilful([0], twice), swarm.add_wilful([1], twice)
    switch = lah.SwitchDMoE(swarm.swarm, "ffn0", jitter=0.0, capacity_factor=1.0)
    steered(switch)
    x = torch.zeros(12, 6, dtype=torch.float64)
    x[:, 0] = 1.0
    stats, now = swarm.swarm.calls.stats, swarm.swarm.calls.clock.monotonic_s
    stats.answered(swarm.identities[0].public_key, "busy", 1, 100.0, now(), load_ms=200_000.0)
    stats.answered(swarm.identities[1].public_key, "idle", 1, 100.0, now(), load_ms=0.0)

    switch(x)

    assert asked_rows([busy, idle]) == {"ffn0.0": 4, "ffn0.1": 8}, "speeds of 1 / (1 + 2) and 1: 3.0x of 12 rows"


def test_grid_dropout_leaves_whole_lines_out_while_training_only(small_swarm):
    swarm = small_swarm(layer((4, 2)))
    node = swarm.add_wilful(range(8), twice)
    switch = lah.SwitchDMoE(swarm.swarm, "ffn0", jitter=0.0, capacity_factor=None, grid_dropout=0.5)
    x = rows(32)
    seen = []
    for seed in range(6):
        node.seen.clear()
        torch.manual_seed(seed)
        dropped = torch.rand(6) < 0.5
        kept = [cell for cell in range(8) if not dropped[cell // 2] and not dropped[4 + cell % 2]] or range(8)
        torch.manual_seed(seed)
        switch(x)
        seen.append({work.uid for work in node.seen})
        assert seen[-1] <= {str(swarm.spec.cells.uid("ffn0", cell)) for cell in kept}
    assert len({frozenset(uids) for uids in seen}) > 1

    node.seen.clear()
    with torch.no_grad():
        switch.eval()(x)
    best = best_cells(switch.gate.line_scores(x).detach(), CellIndex.of((4, 2), range(8)), 1)
    assert {work.uid for work in node.seen} == {str(swarm.spec.cells.uid("ffn0", int(cell))) for cell in best}


def test_when_the_chosen_expert_fails_the_next_best_weighs_its_own_probability(small_swarm):
    swarm = small_swarm(layer((3,), optimizer=FROZEN))
    swarm.add_wilful([0], lambda work, tensors: ExpertFailed("out of luck"))
    swarm.add_wilful([1, 2], twice)
    switch = lah.SwitchDMoE(swarm.swarm, "ffn0", jitter=0.0, capacity_factor=None)
    steered(switch)
    x = torch.tensor([[3.0, 2.0, 1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)

    y = switch(x)

    p = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64).softmax(0)[1]
    torch.testing.assert_close(y, x + p * x)


def test_the_balance_loss_keeps_the_gate_from_one_expert(small_swarm: type[SmallSwarm]):
    swarm = small_swarm(layer((4,), optimizer=FROZEN))
    swarm.add_wilful([0, 1, 2, 3], twice)
    switch = lah.SwitchDMoE(swarm.swarm, "ffn0", capacity_factor=None)
    with torch.no_grad():
        switch.gate.lines.bias[2] = 4.0
    x = rows(64)
    optimizer = torch.optim.SGD(switch.gate.parameters(), lr=0.5)

    losses = []
    for _ in range(20):
        switch(x)
        optimizer.zero_grad()
        loss = switch.balance_loss()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))

    assert losses[0] > 2.0
    assert losses[-1] < 1.5


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"capacity_factor": 0.0}, "capacity_factor"),
        ({"overflow": "drop"}, "next_best, pass"),
        ({"grid_dropout": 1.0}, "grid_dropout"),
        ({"jitter": -0.1}, "jitter"),
        ({"on_missing": "ignore"}, "raise, pass"),
        ({"latency_weight": -1.0}, "latency_weight"),
    ],
)
def test_settings_that_make_no_sense_are_refused(small_swarm, settings, match):
    with pytest.raises(ConfigError, match=match):
        lah.SwitchDMoE(small_swarm(layer()).swarm, "ffn0", **settings)
    assert "capacity_factor=1.25" in repr(lah.SwitchDMoE(small_swarm(layer()).swarm, "ffn0"))
