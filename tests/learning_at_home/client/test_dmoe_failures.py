"""What a DMoE layer survives, what that costs, and what it says when it cannot go on. Nodes of any behaviour."""

import threading
import time

import pytest
import torch
from torch import Tensor

from learning_at_home.client.dmoe import DMoE
from learning_at_home.client.switch_dmoe import SwitchDMoE
from learning_at_home.directory import suspicions
from learning_at_home.errors import (
    ExpertFailed,
    LearningAtHomeError,
    NodeDraining,
    NodeOverloaded,
    NotEnoughExperts,
    PeerUnreachable,
    UnknownExpert,
)
from learning_at_home.identity import Identity
from learning_at_home.wire.messages import Work
from tests.learning_at_home.client.small_swarm import FROZEN, SmallSwarm, WilfulNode, layer, twice

HALF_DEADLINE_S = 2.5  # what is not waited for must end well before the deadline, also on a busy machine


@pytest.fixture(autouse=True)
def suspicion_outlasts_the_test(monkeypatch) -> None:
    monkeypatch.setattr(suspicions, "FIRST_TERM_S", 30.0)


def rows(number: int = 4) -> Tensor:
    return torch.randn(number, 6, dtype=torch.float64)


def silent(work: Work, tensors: list[Tensor]) -> None:
    return None


def failing(work: Work, tensors: list[Tensor]) -> LearningAtHomeError:
    return ExpertFailed(f"{work.uid}: out of luck")


def by_cell(work: Work, tensors: list[Tensor]) -> Tensor:
    """An expert of a 1-dimensional grid that multiplies by its cell plus one."""
    return tensors[-1] * (int(work.uid.rsplit(".", 1)[1]) + 1)


def only(operation: str, behaviour, otherwise=by_cell):
    return lambda work, tensors: (behaviour if work.operation == operation else otherwise)(work, tensors)


def prefer(dmoe: DMoE, *cells: int) -> None:
    """Make the gate of a 1-dimensional layer choose these cells, the best first, whatever the row."""
    with torch.no_grad():
        dmoe.gate.lines.weight.zero_()
        dmoe.gate.lines.bias.zero_()
        for rank, cell in enumerate(cells):
            dmoe.gate.lines.bias[cell] = float(len(cells) - rank)


def line(small_swarm, size: int = 4, **changes: object) -> SmallSwarm:
    return small_swarm(layer((size,), optimizer=FROZEN, **changes))


def mixture(dmoe: DMoE, x: Tensor, cells: list[int]) -> Tensor:
    """What the experts `by_cell` of these cells give: softmax over them alone."""
    scores = dmoe.gate.lines(x)[:, cells]
    factors = torch.tensor([cell + 1.0 for cell in cells], dtype=x.dtype)
    return x * (scores.softmax(dim=1) * factors).sum(dim=1, keepdim=True)


def test_an_expert_that_fails_is_left_out_of_softmax_and_gradients(small_swarm):
    swarm = line(small_swarm)
    swarm.add_wilful([0, 2], by_cell)
    swarm.add_wilful(
        [1, 3], lambda work, tensors: failing(work, tensors) if work.uid == "ffn0.1" else by_cell(work, tensors)
    )
    dmoe = DMoE(swarm.swarm, "ffn0", 3)
    prefer(dmoe, 0, 1, 2)
    x, head = rows().requires_grad_(), rows()
    x_local = x.detach().clone().requires_grad_()

    y = dmoe(x)
    (y * head).sum().backward()
    gate_gradient = dmoe.gate.lines.weight.grad
    dmoe.gate.zero_grad()
    y_local = mixture(dmoe, x_local, [0, 2])
    (y_local * head).sum().backward()

    torch.testing.assert_close(y, y_local)
    torch.testing.assert_close(x.grad, x_local.grad)
    torch.testing.assert_close(gate_gradient, dmoe.gate.lines.weight.grad)


@pytest.mark.parametrize("kind", [DMoE, SwitchDMoE])
def test_a_failure_is_survived_in_a_model_of_bfloat16(small_swarm, kind):
    swarm = line(small_swarm, dtype="float32")
    swarm.add_wilful([0], failing)
    swarm.add_wilful([1, 2, 3], by_cell)
    options = {"capacity_factor": 4.0} if kind is SwitchDMoE else {"k_best": 1}
    model = kind(swarm.swarm, "ffn0", **options).bfloat16()
    prefer(model, 0, 2)
    x = torch.ones(4, 6, dtype=torch.bfloat16, requires_grad=True)

    y = model(x)
    y.sum().backward()

    assert y.dtype == torch.bfloat16
    assert bool((y > x).all()), "expert 2 answered, which multiplies by 3"
    assert x.grad is not None
    assert bool((x.grad > 1).all())


@pytest.mark.parametrize(
    "error",
    [
        ExpertFailed("bad luck"),
        NodeOverloaded("full", retry_after_s=30.0),
        UnknownExpert("moved"),
    ],
)
def test_when_all_chosen_fail_the_next_best_is_asked(small_swarm, error):
    swarm = line(small_swarm)
    swarm.add_wilful([0, 1], lambda work, tensors: error)
    other = swarm.add_wilful([2, 3], by_cell)
    dmoe = DMoE(swarm.swarm, "ffn0", 2)
    prefer(dmoe, 1, 0, 3, 2)
    x = rows()

    torch.testing.assert_close(dmoe(x), 4 * x)
    assert [work.uid for work in other.seen] == ["ffn0.3"]
    assert swarm.directory.suspected(time.monotonic()) == (), "a node that answers is not suspected"


def test_a_draining_node_is_not_chosen_again(small_swarm):
    swarm = line(small_swarm)
    leaving = swarm.add_wilful([0, 1], lambda work, tensors: NodeDraining("leaving"))
    swarm.add_wilful([2, 3], by_cell)
    dmoe = DMoE(swarm.swarm, "ffn0", 2)
    prefer(dmoe, 1, 0, 3, 2)
    x = rows()

    torch.testing.assert_close(dmoe(x), 4 * x)
    asked = len(leaving.seen)
    torch.testing.assert_close(dmoe(x), mixture(dmoe, x, [2, 3]))

    assert len(leaving.seen) == asked
    assert [holder is None for holder in swarm.swarm.layer("ffn0").holders] == [True, True, False, False]


def test_rows_that_an_expert_has_answered_are_not_sent_to_its_next_host(small_swarm):
    """Cell 0 answers the batch's first part and moves before the second; cells 1 and 2 fail the first part."""
    swarm = line(small_swarm)
    first = swarm.spec.max_rows
    moved = threading.Event()
    identity = Identity.generate()
    dave = WilfulNode(identity, swarm.project, by_cell)
    swarm.nodes.append(dave)

    def moving(work: Work, tensors: list[Tensor]) -> Tensor | LearningAtHomeError:
        if len(tensors[0]) == first:
            return by_cell(work, tensors)
        swarm.announce(swarm.identities[0], 1, [0], state="draining")
        swarm.announce(identity, dave.server.port, [0])
        moved.set()
        return UnknownExpert(f"{work.uid}: moved")

    def failing_the_first_part(work: Work, tensors: list[Tensor]) -> Tensor | LearningAtHomeError:
        assert moved.wait(5.0)
        return failing(work, tensors) if len(tensors[0]) == first else by_cell(work, tensors)

    swarm.add_wilful([0], moving)
    swarm.add_wilful([1, 2], failing_the_first_part)
    dmoe = DMoE(swarm.swarm, "ffn0", 2, k_min=2)
    swarm.add_wilful([3], by_cell)
    prefer(dmoe, 0, 1, 2, 3)
    x = rows(first + 3)

    y = dmoe(x)

    torch.testing.assert_close(y[:first], mixture(dmoe, x[:first], [0, 3]))
    torch.testing.assert_close(y[first:], mixture(dmoe, x[first:], [0, 1]))
    assert [work.tensors[0].shape[0] for work in dave.seen] == [3]


def test_with_k_min_two_a_second_answer_is_sought(small_swarm):
    swarm = line(small_swarm)
    swarm.add_wilful([0], failing)
    swarm.add_wilful([1, 2, 3], by_cell)
    dmoe = DMoE(swarm.swarm, "ffn0", 2, k_min=2)
    prefer(dmoe, 0, 3, 1, 2)
    x = rows()

    torch.testing.assert_close(dmoe(x), mixture(dmoe, x, [1, 3]))


def test_a_killed_node_costs_no_time_and_is_avoided_next_time(small_swarm):
    swarm = line(small_swarm)
    dead = swarm.add_wilful([0, 1], by_cell)
    swarm.add_wilful([2, 3], by_cell)
    dmoe = DMoE(swarm.swarm, "ffn0", 2)
    prefer(dmoe, 0, 1, 2, 3)
    dmoe(rows())
    dead.stop()
    x = rows()

    started = time.monotonic()
    torch.testing.assert_close(dmoe(x), 3 * x)
    assert time.monotonic() - started < HALF_DEADLINE_S
    assert [holder is None for holder in swarm.swarm.layer("ffn0").holders] == [True, True, False, False]
    failures = swarm.swarm.stats().failures
    torch.testing.assert_close(dmoe(x), mixture(dmoe, x, [2, 3]))
    assert swarm.swarm.stats().failures == failures


def test_a_silent_node_costs_the_grace_time_once(small_swarm):
    swarm = line(small_swarm)
    swarm.add_wilful([0], silent)
    swarm.add_wilful([1, 2, 3], by_cell)
    dmoe = DMoE(swarm.swarm, "ffn0", 2)
    prefer(dmoe, 0, 1, 2, 3)
    x = rows()

    started = time.monotonic()
    torch.testing.assert_close(dmoe(x), 2 * x)
    first_s = time.monotonic() - started
    torch.testing.assert_close(dmoe(x), mixture(dmoe, x, [1, 2]))
    second_s = time.monotonic() - started - first_s

    assert 0.3 <= first_s < HALF_DEADLINE_S, "grace_s is 0.3"
    assert second_s < HALF_DEADLINE_S
    assert [s.public_key for s in swarm.directory.suspected(time.monotonic())] == [swarm.identities[0].public_key]


def test_rows_whose_experts_are_all_silent_do_not_wait_for_the_deadline(small_swarm):
    swarm = line(small_swarm, deadline_s=4.0)
    swarm.add_wilful([0, 1], silent)
    swarm.add_wilful([2, 3], by_cell)
    dmoe = DMoE(swarm.swarm, "ffn0", 2)
    prefer(dmoe, 0, 1, 2, 3)
    x = rows()

    started = time.monotonic()
    y = dmoe(x)
    took_s = time.monotonic() - started

    torch.testing.assert_close(y, 3 * x)
    assert took_s < 3.0, "a quarter of the deadline, the next best's answer, the grace time"


def test_full_nodes_are_asked_again_when_nobody_else_is_left(small_swarm):
    swarm = line(small_swarm, 2)
    refused: set[str] = set()

    def full_once(work: Work, tensors: list[Tensor]) -> Tensor | LearningAtHomeError:
        if work.uid in refused:
            return by_cell(work, tensors)
        refused.add(work.uid)
        return NodeOverloaded("full", retry_after_s=0.02)

    swarm.add_wilful([0], full_once)
    swarm.add_wilful([1], full_once)
    dmoe = DMoE(swarm.swarm, "ffn0", 2)
    prefer(dmoe, 0, 1)
    x = rows()

    y = dmoe(x)

    assert any(torch.allclose(y, expected) for expected in (x, 2 * x, mixture(dmoe, x, [0, 1])))


def test_a_full_node_is_asked_again_backward(small_swarm):
    swarm = line(small_swarm, 2)
    refusals = [NodeOverloaded("full", retry_after_s=0.02)]
    swarm.add_wilful(
        [0, 1], only("backward", lambda work, tensors: refusals.pop() if refusals else by_cell(work, tensors))
    )
    dmoe = DMoE(swarm.swarm, "ffn0", 1)
    prefer(dmoe, 1)
    x = rows().requires_grad_()

    dmoe(x).sum().backward()

    torch.testing.assert_close(x.grad, torch.full_like(x, 2.0))


def test_when_every_node_is_dead_the_error_names_them_within_the_deadline(small_swarm):
    swarm = line(small_swarm, deadline_s=0.5)
    nodes = [swarm.add_wilful([0, 1], by_cell), swarm.add_wilful([2, 3], by_cell)]
    dmoe = DMoE(swarm.swarm, "ffn0", 2)
    dmoe(rows())
    for node in nodes:
        node.stop()

    for expected in (r"layer ffn0.*4 of 4 rows.*k_min=1.*ffn0\.\d: ", "no expert is alive"):
        started = time.monotonic()
        with pytest.raises(NotEnoughExperts, match=expected) as raised:
            dmoe(rows())
        assert time.monotonic() - started < 0.5 + 1.0
        assert all(isinstance(cause, PeerUnreachable) for cause in raised.value.causes.values())


def test_when_all_fail_the_causes_are_in_the_error(small_swarm):
    swarm = line(small_swarm, 8)
    swarm.add_wilful(range(8), failing)

    with pytest.raises(NotEnoughExperts, match=r"and 4 more in \.causes") as raised:
        DMoE(swarm.swarm, "ffn0", 2)(rows())

    assert set(raised.value.causes) == {f"ffn0.{cell}" for cell in range(8)}
    assert {type(cause) for cause in raised.value.causes.values()} == {ExpertFailed}


def test_silence_of_everyone_is_an_error_at_the_deadline(small_swarm):
    swarm = line(small_swarm, deadline_s=0.5)
    swarm.add_wilful([0, 1, 2, 3], silent)
    started = time.monotonic()

    with pytest.raises(NotEnoughExperts):
        DMoE(swarm.swarm, "ffn0", 2)(rows())

    assert 0.4 < time.monotonic() - started < 0.5 + 1.0


def test_training_goes_on_as_soon_as_somebody_is_alive(small_swarm):
    """The layer waits within its deadline for a first expert."""
    swarm = line(small_swarm)
    dmoe = DMoE(swarm.swarm, "ffn0", 2)
    x = rows()
    late = threading.Timer(0.1, lambda: swarm.add_wilful([2], by_cell))
    late.start()

    torch.testing.assert_close(dmoe(x), 3 * x)
    late.join()


def test_a_node_that_comes_back_elsewhere_is_found_within_the_deadline(small_swarm, monkeypatch):
    monkeypatch.setattr(suspicions, "FIRST_TERM_S", 0.1)
    swarm = line(small_swarm)
    node = swarm.add_wilful([0, 1, 2, 3], by_cell)
    dmoe = DMoE(swarm.swarm, "ffn0", 1)
    prefer(dmoe, 2)
    dmoe(rows())
    node.stop()
    back = WilfulNode(swarm.identities[0], swarm.project, by_cell)
    swarm.nodes.append(back)
    late = threading.Timer(0.2, lambda: swarm.announce(swarm.identities[0], back.server.port, [0, 1, 2, 3]))
    late.start()
    x = rows()

    torch.testing.assert_close(dmoe(x), 3 * x)
    late.join()


def test_a_node_killed_between_forward_and_backward_loses_only_its_share(small_swarm):
    swarm = line(small_swarm)
    dead = swarm.add_wilful([0, 2], by_cell)
    swarm.add_wilful([1, 3], by_cell)
    dmoe = DMoE(swarm.swarm, "ffn0", 2)
    prefer(dmoe, 0, 1)
    x = rows().requires_grad_()
    y = dmoe(x)
    dead.stop()

    y.sum().backward()

    share = float(torch.tensor([2.0, 1.0]).softmax(0)[1])
    torch.testing.assert_close(x.grad, torch.full_like(x, 2 * share))
    stats = swarm.swarm.stats()
    assert (stats.lost_contributions, stats.zero_gradient_rows) == (4, 0)


def test_a_node_silent_in_backward_costs_the_grace_time(small_swarm):
    swarm = line(small_swarm)
    swarm.add_wilful([0], only("backward", silent))
    swarm.add_wilful([1], by_cell)
    dmoe = DMoE(swarm.swarm, "ffn0", 2)
    x = rows().requires_grad_()
    y = dmoe(x)
    started = time.monotonic()

    y.sum().backward()

    assert 0.3 <= time.monotonic() - started < HALF_DEADLINE_S
    assert swarm.swarm.stats().lost_contributions == 4


def test_rows_without_any_backward_answer_get_zero_and_are_counted(small_swarm):
    """Rows 0 and 1 go to cell 0, whose backward fails; rows 2 and 3 to cell 1."""
    swarm = line(small_swarm, 2)
    swarm.add_wilful([0], only("backward", failing))
    swarm.add_wilful([1], by_cell)
    dmoe = DMoE(swarm.swarm, "ffn0", 1)
    prefer(dmoe)
    with torch.no_grad():
        dmoe.gate.lines.weight[0, 0] = 1.0
    x = torch.ones(4, 6, dtype=torch.float64)
    x[2:, 0] = -1.0
    x.requires_grad_()

    dmoe(x).sum().backward()

    expected = torch.full_like(x, 2.0)
    expected[:2] = 0.0
    torch.testing.assert_close(x.grad, expected)
    stats = swarm.swarm.stats()
    assert (stats.lost_contributions, stats.zero_gradient_rows) == (2, 2)


def test_a_backward_without_any_answer_raises(small_swarm):
    swarm = line(small_swarm)
    swarm.add_wilful([0, 1, 2, 3], only("backward", failing))
    y = DMoE(swarm.swarm, "ffn0", 2)(rows().requires_grad_())

    with pytest.raises(NotEnoughExperts, match=r"layer ffn0, backward.*out of luck") as raised:
        y.sum().backward()
    assert len(raised.value.causes) >= 2


def test_garbage_answers_are_survived_and_their_node_is_avoided(small_swarm):
    swarm = line(small_swarm)
    swarm.add_wilful([0, 1], lambda work, tensors: tensors[0][:1])
    swarm.add_wilful([2, 3], by_cell)
    dmoe = DMoE(swarm.swarm, "ffn0", 2)
    prefer(dmoe, 0, 1, 3)
    x = rows()

    torch.testing.assert_close(dmoe(x), 4 * x)
    assert [holder is None for holder in swarm.swarm.layer("ffn0").holders] == [True, True, False, False]


def test_ten_percent_failures_never_reach_the_users_loop(small_swarm):
    swarm = small_swarm(layer((4, 4), optimizer=FROZEN))
    random = torch.Generator().manual_seed(1)

    def flaky(work: Work, tensors: list[Tensor]) -> Tensor | LearningAtHomeError:
        unlucky = float(torch.rand((), generator=random)) < 0.1
        return ExpertFailed("out of luck") if unlucky else twice(work, tensors)

    for start in range(4):
        swarm.add_wilful(range(start, 16, 4), flaky)
    dmoe = DMoE(swarm.swarm, "ffn0", 4)
    for _ in range(20):
        x = rows(16).requires_grad_()
        y = dmoe(x)
        torch.testing.assert_close(y, 2 * x)
        y.sum().backward()
        assert x.grad is not None
    assert swarm.swarm.stats().retries > 0


@pytest.mark.parametrize("operation", ["forward", "backward"])
def test_an_expert_that_raises_once_is_asked_again_at_once(small_swarm, operation):
    swarm = line(small_swarm)
    unlucky: list[str] = []

    def raises_once(work: Work, tensors: list[Tensor]) -> Tensor | LearningAtHomeError:
        if work.operation == operation and work.uid not in unlucky:
            unlucky.append(work.uid)
            return failing(work, tensors)
        return by_cell(work, tensors)

    swarm.add_wilful(range(4), raises_once)
    dmoe = DMoE(swarm.swarm, "ffn0", 2)
    prefer(dmoe, 0, 2)
    x = rows().requires_grad_()

    y = dmoe(x)
    y.sum().backward()

    torch.testing.assert_close(y, mixture(dmoe, x, [0, 2]))
    assert sorted(unlucky) == ["ffn0.0", "ffn0.2"]
    stats = swarm.swarm.stats()
    assert (stats.failures, stats.retries, stats.lost_contributions) == (0, 2, 0)


def test_an_expert_that_raises_every_time_is_asked_three_times_and_no_more(small_swarm):
    swarm = line(small_swarm)
    asked: list[str] = []

    def always(work: Work, tensors: list[Tensor]) -> LearningAtHomeError:
        asked.append(work.uid)
        return failing(work, tensors)

    swarm.add_wilful([0], always)
    swarm.add_wilful([1, 2, 3], by_cell)
    dmoe = DMoE(swarm.swarm, "ffn0", 2)
    prefer(dmoe, 0, 2)
    x = rows()

    torch.testing.assert_close(dmoe(x), 3 * x)
    assert asked == 3 * ["ffn0.0"]
    assert swarm.swarm.stats().failures == 1
