"""Rows without enough answers that pass through: output and gradients equal a local mixture with the identity there."""

import time

import pytest
import torch
from torch import Tensor

import learning_at_home as lah
from learning_at_home.directory import suspicions
from learning_at_home.errors import ExpertFailed, LearningAtHomeError, NotEnoughExperts, UsageError
from learning_at_home.wire.messages import Work
from tests.learning_at_home.client.small_swarm import FROZEN, SmallSwarm, layer, twice

MARK = 50.0  # a row that begins with it fails at every expert


@pytest.fixture(autouse=True)
def suspicion_outlasts_the_test(monkeypatch) -> None:
    monkeypatch.setattr(suspicions, "FIRST_TERM_S", 30.0)


def rows(number: int = 6) -> Tensor:
    return torch.randn(number, 6, dtype=torch.float64)


def failing(work: Work, tensors: list[Tensor]) -> LearningAtHomeError:
    return ExpertFailed(f"{work.uid}: out of luck")


def steer(dmoe: lah.DMoE) -> None:
    """A 1-dimensional gate of 4 lines that scores cell i by the row's feature i."""
    with torch.no_grad():
        dmoe.gate.lines.weight.copy_(torch.eye(6)[:4])
        dmoe.gate.lines.bias.zero_()


def towards(*cells: int) -> Tensor:
    """A row for each cell that it prefers."""
    return 3 * torch.eye(6, dtype=torch.float64)[list(cells)] + 0.1 * rows(len(cells))


def half_dead(small_swarm) -> SmallSwarm:
    """Cells 0 and 1 are real experts, frozen; 2 and 3 refuse everything."""
    swarm: SmallSwarm = small_swarm(layer((4,), deadline_s=20.0, optimizer=FROZEN))
    swarm.add_host([0, 1])
    swarm.add_wilful([2, 3], failing)
    return swarm


def test_rows_with_fewer_than_k_min_answers_are_the_identity_and_train_nobody(small_swarm):
    swarm: SmallSwarm = small_swarm(layer((4,), deadline_s=20.0))
    host = swarm.add_host([0])
    swarm.add_wilful([1], failing)
    dmoe = lah.DMoE(swarm.swarm, "ffn0", 2, k_min=2, on_missing="pass")
    x, head = rows().requires_grad_(), rows()

    y = dmoe(x)
    (y * head).sum().backward()

    torch.testing.assert_close(y, x, rtol=0, atol=0)
    torch.testing.assert_close(x.grad, head, rtol=0, atol=0)
    assert dmoe.passed.all()
    torch.testing.assert_close(dmoe.gate.lines.weight.grad, torch.zeros(4, 6, dtype=torch.float64))
    assert host.drain(5.0)
    assert host.experts.by_uid["ffn0.0"].updates == 0, "not even the one that answered"
    assert swarm.swarm.stats().passed_rows == 6
    assert swarm.swarm.stats().zero_gradient_rows == 0


def test_a_row_whose_expert_failed_and_whose_next_best_answers_does_not_pass(small_swarm):
    swarm: SmallSwarm = small_swarm(layer((4,), deadline_s=20.0))
    swarm.add_host([0])
    swarm.add_wilful([1, 2, 3], failing)
    dmoe = lah.DMoE(swarm.swarm, "ffn0", 1, on_missing="pass")
    steer(dmoe)
    local = swarm.local(0)
    x = towards(0, 2, 0, 3).requires_grad_()
    x_local, head = x.detach().clone().requires_grad_(), rows(4)

    y = dmoe(x)
    (y * head).sum().backward()
    y_local = local(x_local)  # the next best of rows 1 and 3 is in the end cell 0
    (y_local * head).sum().backward()

    torch.testing.assert_close(y, y_local)
    torch.testing.assert_close(x.grad, x_local.grad)
    assert dmoe.passed.tolist() == [False] * 4


def test_a_mixture_of_answered_and_passed_rows_has_the_gradient_of_the_local_one(small_swarm):
    """Two answers are needed; rows that prefer cell 0 get them from 0 and 1, marked ones are refused by 1."""
    swarm: SmallSwarm = small_swarm(layer((4,), deadline_s=20.0))
    swarm.add_host([0])

    def but_marked(work: Work, tensors: list[Tensor]) -> Tensor | LearningAtHomeError:
        return failing(work, tensors) if (tensors[0][:, 5] == MARK).any() else (int(work.uid[-1]) + 1.0) * tensors[-1]

    swarm.add_wilful([1, 2, 3], but_marked)
    dmoe = lah.DMoE(swarm.swarm, "ffn0", 2, k_min=2, on_missing="pass")
    steer(dmoe)
    lines = torch.nn.Linear(6, 4, dtype=torch.float64)
    lines.load_state_dict(dmoe.gate.lines.state_dict())
    local = swarm.local(0)
    x = torch.zeros(5, 6, dtype=torch.float64)
    x[:, 0] = 9.0
    x[[0, 2], 1] = 5.0  # cells 0 and 1
    x[[1, 3, 4], 2] = 5.0  # cells 0 and 2: 3 and 1 come next, and all three refuse, for one row is marked
    x[3, 5] = MARK
    x = x.requires_grad_()
    x_local, head = x.detach().clone().requires_grad_(), rows(5)

    y = dmoe(x)
    (y * head).sum().backward()

    passed = dmoe.passed
    assert passed.tolist() == [False, True, False, True, True]
    weights = lines(x_local)[:, :2].softmax(dim=1)
    mixed = weights[:, :1] * local(x_local) + weights[:, 1:] * 2 * x_local
    y_local = torch.where(passed.unsqueeze(1), x_local, mixed)
    (y_local * head).sum().backward()
    torch.testing.assert_close(y, y_local)
    torch.testing.assert_close(x.grad, x_local.grad)
    torch.testing.assert_close(dmoe.gate.lines.weight.grad, lines.weight.grad)
    torch.testing.assert_close(dmoe.gate.lines.bias.grad, lines.bias.grad)
    assert swarm.swarm.stats().passed_rows == 3
    assert swarm.swarm.stats().zero_gradient_rows == 0
    assert torch.isfinite(dmoe.balance_loss())


def test_without_anyone_alive_all_rows_pass_at_the_deadline(small_swarm):
    swarm = small_swarm(layer((4,), deadline_s=0.2))
    x = rows().requires_grad_()
    dmoe = lah.DMoE(swarm.swarm, "ffn0", 2, on_missing="pass")

    started = time.monotonic()
    y = dmoe(x)
    (y.sum() + dmoe.balance_loss()).backward()

    assert time.monotonic() - started < 2.0
    torch.testing.assert_close(y, x, rtol=0, atol=0)
    torch.testing.assert_close(x.grad, torch.ones_like(x), rtol=0, atol=0)
    assert dmoe.passed.all()
    y += 1  # the caller's own tensor, not x
    assert not torch.equal(y, x)


def test_a_batch_that_no_expert_answers_backward_gets_no_gradient_and_is_counted(small_swarm):
    swarm = small_swarm(layer((4,), deadline_s=20.0))
    swarm.add_wilful(
        range(4), lambda work, tensors: failing(work, tensors) if work.operation == "backward" else 2 * tensors[0]
    )
    x = rows().requires_grad_()

    lah.DMoE(swarm.swarm, "ffn0", 2, on_missing="pass")(x).sum().backward()

    torch.testing.assert_close(x.grad, torch.zeros_like(x))
    assert swarm.swarm.stats().zero_gradient_rows == 6
    with pytest.raises(NotEnoughExperts, match="backward"):
        lah.DMoE(swarm.swarm, "ffn0", 2)(x).sum().backward()


def test_gradcheck_passes_with_rows_that_pass(small_swarm):
    swarm = half_dead(small_swarm)
    dmoe = lah.DMoE(swarm.swarm, "ffn0", 2, k_min=2, on_missing="pass")
    steer(dmoe)
    x = towards(0, 2, 1).requires_grad_()  # the second one's best refuse, and its next best are 0 and 1
    parameters = (dmoe.gate.lines.weight, dmoe.gate.lines.bias)

    def function(x: Tensor, *_: Tensor) -> Tensor:
        return dmoe(x)

    assert torch.autograd.gradcheck(function, (x, *parameters))
    strict = lah.DMoE(swarm.swarm, "ffn0", 3, k_min=3, on_missing="pass")
    assert torch.autograd.gradcheck(lambda x: strict(x), (x,))
    assert strict.passed.all()


def test_the_mask_has_the_leading_dimensions_of_x(small_swarm):
    swarm = small_swarm(layer())
    swarm.add_wilful([0, 1, 2, 3], twice)
    dmoe = lah.DMoE(swarm.swarm, "ffn0", 2, on_missing="pass")
    with pytest.raises(UsageError, match="forward"):
        _ = dmoe.passed

    dmoe(torch.randn(2, 3, 6, dtype=torch.float64))

    assert dmoe.passed.shape == (2, 3)
    assert not dmoe.passed.any()
    assert "on_missing='pass'" in repr(dmoe)
    with pytest.raises(UsageError, match="on_missing"):
        _ = lah.DMoE(swarm.swarm, "ffn0", 2).passed
