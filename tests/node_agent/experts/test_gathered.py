"""Gradients that are gathered make one update, as where they are accumulated locally; callers do not wait for it."""

import pytest
import torch
from torch import Tensor, nn

from learning_at_home.errors import ExpertFailed
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec, OptimizerSpec
from node_agent.experts.activations import Activations
from node_agent.experts.architectures import build_expert
from node_agent.experts.expert import Expert, apply_gradients
from node_agent.experts.gathered import Gathered
from node_agent.experts.gradients import Gradients
from node_agent.runtime.computation import compute, step_gathered

CPU = torch.device("cpu")
UID = ExpertUid("ffn0", (0,))
HIDDEN = 6


def expert_with(module: nn.Module | None = None, **optimizer) -> Expert:
    spec = OptimizerSpec(**{"name": "sgd", "learning_rate": 0.1, **optimizer})
    layer = LayerSpec(prefix="ffn0", grid=(2,), hidden_size=HIDDEN, dtype="float64", optimizer=spec)
    return Expert.create(UID, layer, "digits", CPU) if module is None else Expert(UID, layer, module, CPU)


def drawn(number: int) -> tuple[Tensor, Tensor]:
    rows, gradient = torch.randn(2, number, HIDDEN, dtype=torch.float64)
    return rows, gradient


def weights(expert: Expert) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in expert.module.parameters()]


@pytest.mark.parametrize("clip_norm", [None, 0.3])
@pytest.mark.parametrize(
    "batches", [[[2], [3], [1]], [[2, 3], [1]], [[2, 3, 1]]], ids=["one by one", "in two batches", "in one"]
)
def test_one_update_of_all_rows_equals_torchs_with_accumulated_gradients(batches, clip_norm):
    expert = expert_with(update_rows=6, clip_norm=clip_norm)
    local = build_expert(expert.layer, "digits", UID)
    optimizer = torch.optim.SGD(local.parameters(), 0.1)
    total = [torch.zeros_like(parameter) for parameter in local.parameters()]

    for sizes in batches:
        assert expert.updates == 0
        requests = [drawn(number) for number in sizes]
        outcomes = compute(expert, "backward", requests)
        for (rows, gradient), outcome in zip(requests, outcomes, strict=True):
            leaf = rows.clone().requires_grad_()
            local.zero_grad()
            local(leaf).backward(gradient)
            if clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(local.parameters(), clip_norm)
            for whole, parameter in zip(total, local.parameters(), strict=True):
                assert parameter.grad is not None
                whole += parameter.grad
            assert isinstance(outcome, Tensor)
            torch.testing.assert_close(outcome, leaf.grad)
    for whole, parameter in zip(total, local.parameters(), strict=True):
        parameter.grad = whole
    optimizer.step()

    assert expert.updates == 1
    assert expert.gathered.rows == 0
    for ours, theirs in zip(weights(expert), local.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach())


def test_nothing_changes_until_there_are_enough_rows():
    expert = expert_with(update_rows=6)
    before = weights(expert)

    compute(expert, "backward", [drawn(5)])

    assert all(map(torch.equal, before, weights(expert)))
    assert (expert.updates, expert.gathered.rows) == (0, 5)


def test_a_request_with_rows_enough_makes_its_update_at_once():
    expert, at_once = expert_with(update_rows=6), expert_with()
    request = drawn(9)

    compute(expert, "backward", [request])
    compute(at_once, "backward", [request])

    assert expert.updates == at_once.updates == 1
    assert all(map(torch.equal, weights(expert), weights(at_once)))


def test_a_guilty_request_is_refused_and_adds_nothing():
    expert, alone = expert_with(update_rows=4), expert_with(update_rows=4)
    sound, guilty, late = drawn(2), (drawn(2)[0] * 1e10, drawn(2)[1] * 1e305), drawn(2)

    outcomes = compute(expert, "backward", [sound, guilty])
    compute(alone, "backward", [sound])

    assert isinstance(outcomes[0], Tensor)
    assert isinstance(outcomes[1], ExpertFailed)
    assert expert.gathered.rows == 2
    for one in (expert, alone):
        compute(one, "backward", [late])
        assert one.updates == 1
    for ours, theirs in zip(weights(expert), weights(alone), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_that_would_overflow_together_are_two_updates():
    """Each is within what the optimizer's state can hold."""
    expert = expert_with(update_rows=100, clip_norm=None)
    large = 0.8 * expert._largest_norm
    of_parameters = [torch.zeros_like(parameter) for parameter in expert.module.parameters()]
    found = [Gradients(torch.empty(0), tuple(g.clone() for g in of_parameters), large) for _ in range(2)]

    for gradients in found:
        expert.apply(gradients, 1)

    assert (expert.updates, expert.gathered.rows) == (1, 1)


def test_what_is_gathered_is_stepped_by_when_the_time_has_come():
    expert, at_once = expert_with(update_seconds=1.0), expert_with()
    request = drawn(3)

    compute(expert, "backward", [request])
    assert expert.updates == 0
    assert step_gathered(expert) is None
    assert step_gathered(expert) is None, "a second time there is nothing"
    compute(at_once, "backward", [request])

    assert expert.updates == 1
    assert all(map(torch.equal, weights(expert), weights(at_once)))


def test_a_remembered_forward_stays_until_the_update():
    expert = expert_with(update_rows=4)
    expert.activations = Activations(1 << 20)
    expert.forward_flop_per_row = 1 << 40
    first, second = drawn(2), drawn(2)
    compute(expert, "forward", [first[:1]])
    compute(expert, "forward", [second[:1]])
    runs = []
    expert.module.register_forward_hook(lambda *_: runs.append(1))

    compute(expert, "backward", [first])
    compute(expert, "backward", [second])  # its forward had the weights that it still has

    assert (runs, expert.updates, expert.activations.num_bytes) == ([], 1, 0)


def test_a_network_without_gradients_gathers_nothing():
    layer = LayerSpec(
        prefix="ffn0", grid=(2,), architecture="nop", hidden_size=HIDDEN, optimizer=OptimizerSpec(update_rows=1)
    )
    expert = Expert.create(UID, layer, "digits", CPU)

    compute(expert, "backward", [(torch.randn(2, HIDDEN), torch.randn(2, HIDDEN))])

    assert (expert.updates, expert.gathered.rows) == (0, 0)


def test_what_came_from_a_group_does_not_keep_the_groups_memory():
    of_group = torch.randn(3, 4)
    gathered = Gathered(OptimizerSpec(update_rows=10))

    gathered.add(Gradients(torch.randn(3), (of_group[1],), 1.0), 2)
    taken = gathered.take().of_parameters[0]

    assert taken is not None
    assert torch.equal(taken, of_group[1])
    assert taken.untyped_storage().nbytes() == taken.nbytes


def test_experts_of_a_group_step_each_when_it_has_enough():
    experts = [expert_with(update_rows=4) for _ in range(2)]
    found = [expert.gradients(*drawn(1)) for expert in experts]

    apply_gradients(experts, found, [4, 3])

    assert [(expert.updates, expert.gathered.rows) for expert in experts] == [(1, 0), (0, 3)]
