"""The DMoE layer against a local mixture, and its use. Real nodes on real sockets, float64."""

import copy

import pytest
import torch
from torch import Tensor

from learning_at_home.client.dmoe import DMoE
from learning_at_home.client.gating import GatingFunction
from learning_at_home.client.mixture import importance_loss
from learning_at_home.client.selection import CellIndex, best_cells, cell_scores
from learning_at_home.errors import (
    ConfigError,
    EmptyBatch,
    NonFiniteTensor,
    NotEnoughExperts,
    SpecMismatch,
    UnknownLayer,
    UsageError,
)
from tests.learning_at_home.client.small_swarm import FROZEN, SGD, layer, twice


def rows(number: int = 5, size: int = 6) -> Tensor:
    return torch.randn(number, size, dtype=torch.float64)


def local_mixture(
    gate: GatingFunction, experts: dict[int, torch.nn.Module], x: Tensor, k_best: int
) -> tuple[Tensor, Tensor]:
    """The same layer computed here: every expert on every row, then a softmax over the k best living."""
    lines = gate.lines(x)
    chosen = best_cells(lines, CellIndex.of(gate.grid.shape, sorted(experts)), k_best)
    weights = cell_scores(lines, gate.grid.shape, chosen).softmax(dim=1)
    outputs = {cell: expert(x) for cell, expert in experts.items()}
    y = torch.stack(
        [
            sum(
                (weights[row, slot] * outputs[int(cell)][row] for slot, cell in enumerate(chosen[row])),
                torch.zeros(x.shape[1:], dtype=x.dtype),
            )
            for row in range(len(x))
        ]
    )
    return y, chosen


def weights_of(module: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])


@pytest.mark.parametrize("grid", [(4,), (2, 2), (2, 1, 3)])
@pytest.mark.parametrize("k_best", [1, 3])
def test_output_gradients_and_updates_equal_a_local_mixture(small_swarm, grid, k_best):
    swarm = small_swarm(layer(grid))
    num_cells = swarm.spec.cells.num_cells
    hosts = [swarm.add_host(range(0, num_cells, 2)), swarm.add_host(range(1, num_cells, 2))]
    locals_ = {cell: swarm.local(cell) for cell in range(num_cells)}
    dmoe = DMoE(swarm.swarm, "ffn0", k_best)
    gate = copy.deepcopy(dmoe.gate)
    x, head = rows().requires_grad_(), rows()
    x_local = x.detach().clone().requires_grad_()

    y = dmoe(x)
    (y * head).sum().backward()
    y_local, _ = local_mixture(gate, locals_, x_local, k_best)
    (y_local * head).sum().backward()

    torch.testing.assert_close(y, y_local)
    torch.testing.assert_close(x.grad, x_local.grad)
    torch.testing.assert_close(dmoe.gate.lines.weight.grad, gate.lines.weight.grad)
    torch.testing.assert_close(dmoe.gate.lines.bias.grad, gate.lines.bias.grad)
    for host in hosts:
        assert host.drain(5.0)
        for uid, expert in host.experts.by_uid.items():
            local = locals_[swarm.spec.cells.cell(expert.uid)]
            if any(parameter.grad is not None and parameter.grad.any() for parameter in local.parameters()):
                torch.optim.SGD(local.parameters(), lr=SGD.learning_rate).step()
                assert expert.updates == 1, uid
            torch.testing.assert_close(weights_of(expert.module), weights_of(local))


def test_gradcheck_passes_with_frozen_experts(small_swarm):
    swarm = small_swarm(layer(hidden_size=3, optimizer=FROZEN))
    swarm.add_host([0, 1, 2, 3])
    dmoe = DMoE(swarm.swarm, "ffn0", 2)
    x = rows(2, 3).requires_grad_()
    parameters = (dmoe.gate.lines.weight, dmoe.gate.lines.bias)

    def function(x: Tensor, *_: Tensor) -> Tensor:
        return dmoe(x)

    assert torch.autograd.gradcheck(function, (x, *parameters))


def test_one_message_per_node_and_one_call_per_expert(small_swarm):
    swarm = small_swarm(layer((4, 4), deadline_s=20.0))
    nodes = [swarm.add_wilful(range(start, 16, 4), twice) for start in range(4)]
    dmoe = DMoE(swarm.swarm, "ffn0", 4)

    dmoe(rows(64)).sum().backward()

    for node in nodes:
        forwards = [work.uid for work in node.seen if work.operation == "forward"]
        backwards = [work.uid for work in node.seen if work.operation == "backward"]
        assert len(forwards) == len(set(forwards))
        assert sorted(backwards) == sorted(forwards)
        assert node.server.counters.malformed == 0
    assert sum(work.tensors[0].shape[0] for node in nodes for work in node.seen) == 2 * 64 * 4


def test_only_living_cells_are_chosen_and_fewer_than_k_are_enough(small_swarm):
    swarm = small_swarm(layer((2, 3)))
    swarm.add_host([1, 4])
    dmoe = DMoE(swarm.swarm, "ffn0", 4)
    x = rows()

    y_local, _ = local_mixture(dmoe.gate, {1: swarm.local(1), 4: swarm.local(4)}, x, 4)
    torch.testing.assert_close(dmoe(x), y_local)


def test_leading_dimensions_are_kept(small_swarm):
    swarm = small_swarm(layer())
    swarm.add_wilful([0, 1, 2, 3], twice)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)

    torch.testing.assert_close(DMoE(swarm.swarm, "ffn0", 2)(x), 2 * x)


def test_a_layer_of_sequences(small_swarm):
    swarm = small_swarm(layer(architecture="transformer", hidden_size=8, sequence_length=3))
    swarm.add_host([0, 1, 2, 3])
    dmoe = DMoE(swarm.swarm, "ffn0", 1)
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)

    y = dmoe(x)
    y.sum().backward()

    cells = dmoe.gate(x).cells[:, 0].tolist()
    expected = torch.stack([swarm.local(cell)(x[row : row + 1])[0] for row, cell in enumerate(cells)])
    torch.testing.assert_close(y, expected)
    assert x.grad is not None


def test_a_batch_over_one_request_is_split(small_swarm):
    swarm = small_swarm(layer((2,)))
    node = swarm.add_wilful([0, 1], twice)
    x = rows(5000)

    torch.testing.assert_close(DMoE(swarm.swarm, "ffn0", 2)(x), 2 * x)
    assert sorted(work.tensors[0].shape[0] for work in node.seen) == [904, 904, 4096, 4096]


def test_float32_layers_and_no_grad(small_swarm):
    swarm = small_swarm(layer(dtype="float32"))
    node = swarm.add_wilful([0, 1, 2, 3], twice)
    x = torch.randn(7, 6)
    with torch.no_grad():
        y = DMoE(swarm.swarm, "ffn0", 2)(x)

    torch.testing.assert_close(y, 2 * x)
    assert {work.operation for work in node.seen} == {"forward"}


def test_frozen_experts_are_not_asked_backward_for_data(small_swarm):
    """The gate still learns; nobody needs the gradient of the experts' inputs."""
    swarm = small_swarm(layer(optimizer=FROZEN))
    node = swarm.add_wilful([0, 1, 2, 3], lambda work, tensors: tensors[0] * float(work.uid[-1]))
    dmoe = DMoE(swarm.swarm, "ffn0", 4)

    dmoe(rows()).sum().backward()

    assert dmoe.gate.lines.weight.grad is not None
    assert dmoe.gate.lines.weight.grad.abs().sum() > 0
    assert {work.operation for work in node.seen} == {"forward"}


@pytest.mark.parametrize(
    "bad, error",
    [
        (lambda: rows(3, 5), SpecMismatch),
        (lambda: torch.randn(3, 6), SpecMismatch),
        (lambda: rows(0), EmptyBatch),
        (lambda: rows() * float("nan"), NonFiniteTensor),
        (lambda: "rows", SpecMismatch),
    ],
)
def test_bad_input_is_named_before_anything_is_sent(small_swarm, bad, error):
    swarm = small_swarm(layer())
    node = swarm.add_wilful([0, 1, 2, 3], twice)
    dmoe = DMoE(swarm.swarm, "ffn0", 2)

    with pytest.raises(error, match="layer ffn0"):
        dmoe(bad())

    assert node.seen == []
    x = rows()
    torch.testing.assert_close(dmoe(x), 2 * x)


def test_a_gate_that_diverged_says_so(small_swarm):
    swarm = small_swarm(layer())
    swarm.add_wilful([0, 1, 2, 3], twice)
    dmoe = DMoE(swarm.swarm, "ffn0", 2)
    torch.nn.init.constant_(dmoe.gate.lines.weight, float("nan"))

    with pytest.raises(NonFiniteTensor, match="gate"):
        dmoe(rows())


def test_a_gradient_that_is_not_finite_never_leaves(small_swarm):
    swarm = small_swarm(layer())
    node = swarm.add_wilful([0, 1, 2, 3], twice)

    with pytest.raises(NonFiniteTensor, match="layer ffn0"):
        (DMoE(swarm.swarm, "ffn0", 2)(rows()) * float("inf")).sum().backward()
    assert {work.operation for work in node.seen} == {"forward"}


def test_second_derivatives_are_refused(small_swarm):
    swarm = small_swarm(layer())
    swarm.add_wilful([0, 1, 2, 3], twice)
    x = rows().requires_grad_()

    with pytest.raises(UsageError, match="create_graph"):
        torch.autograd.grad(DMoE(swarm.swarm, "ffn0", 2)(x).sum(), x, create_graph=True)


def test_settings_that_make_no_sense_are_refused(small_swarm):
    swarm = small_swarm(layer()).swarm
    with pytest.raises(UnknownLayer):
        DMoE(swarm, "ffn9")
    with pytest.raises(ConfigError, match="k_min"):
        DMoE(swarm, "ffn0", 2, k_min=3)
    with pytest.raises(ConfigError, match="deadline_s"):
        DMoE(swarm, "ffn0", 2, deadline_s=0)
    with pytest.raises(SpecMismatch, match="in_features=7"):
        DMoE(swarm, "ffn0", 2, in_features=7)
    assert DMoE(swarm, "ffn0", 2, in_features=6).terms.deadline_s == 5.0


def test_the_state_dict_is_the_gates_and_copies_work(small_swarm):
    swarm = small_swarm(layer())
    swarm.add_wilful([0, 1, 2, 3], twice)
    dmoe = DMoE(swarm.swarm, "ffn0", 2)
    dmoe(rows()).sum().backward()

    assert list(dmoe.state_dict()) == ["gate.lines.weight", "gate.lines.bias"]
    x = rows()
    torch.testing.assert_close(copy.deepcopy(dmoe)(x), 2 * x)
    assert "k_best=2" in repr(dmoe)


def test_the_gate_returns_the_chosen_experts_with_their_scores(small_swarm):
    swarm = small_swarm(layer())
    swarm.add_wilful([0, 1, 3], twice)
    gate = GatingFunction(6, (2, 2), k_best=2, swarm=swarm.swarm, layer="ffn0").double()
    x = rows(4)

    chosen = gate(x)

    assert chosen.scores.shape == (4, 2)
    assert chosen.scores.requires_grad
    lines = gate.line_scores(x)
    for row, (uids, experts, scores) in enumerate(zip(chosen.uids, chosen.experts, chosen.scores, strict=True)):
        assert [expert.uid for expert in experts] == uids
        assert all(experts[0] is swarm.swarm.expert(uids[0]) for _ in uids)
        sums = [lines[row, uid.indices[0]] + lines[row, 2 + uid.indices[1]] for uid in uids]
        torch.testing.assert_close(scores, torch.stack(sums))
        torch.testing.assert_close(experts[0](x[row : row + 1]), 2 * x[row : row + 1])


def test_a_gate_without_anyone_alive_or_without_a_swarm(small_swarm):
    swarm = small_swarm(layer()).swarm
    with pytest.raises(NotEnoughExperts, match="no expert is alive"):
        GatingFunction.of_layer(swarm, "ffn0")(rows())
    with pytest.raises(ConfigError, match="no swarm"):
        GatingFunction(6, (2, 2))(rows())
    with pytest.raises(ConfigError, match="both"):
        GatingFunction(6, (2, 2), swarm=swarm)
    with pytest.raises(ConfigError, match="grid"):
        GatingFunction(6, (2, 3), swarm=swarm, layer="ffn0")
    with pytest.raises(ConfigError, match="k_best"):
        GatingFunction(6, (2, 2), k_best=0)


def test_the_balance_loss_pulls_the_gate_towards_equal_use(small_swarm):
    swarm = small_swarm(layer((4,)))
    swarm.add_wilful([0, 1, 2, 3], twice)
    dmoe = DMoE(swarm.swarm, "ffn0", 4)
    with pytest.raises(UsageError, match="forward"):
        dmoe.balance_loss()
    with torch.no_grad():
        dmoe.gate.lines.bias[0] = 3.0
    x = rows(16)
    optimizer = torch.optim.SGD(dmoe.gate.parameters(), lr=0.1)

    losses = []
    for _ in range(10):
        dmoe(x)
        optimizer.zero_grad()
        loss = dmoe.balance_loss()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))

    assert losses[-1] < 0.5 * losses[0]


def test_importance_counts_cells_that_nobody_chose():
    weights = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    living = torch.tensor([0, 1, 2, 3])

    assert importance_loss(weights, torch.tensor([[0, 1], [2, 3]]), living) == 0.0
    assert importance_loss(weights, torch.tensor([[0, 1], [0, 1]]), living) == pytest.approx(1.0)
    assert importance_loss(weights, torch.tensor([[0, -1], [0, -1]]), living) == pytest.approx(3.0)
