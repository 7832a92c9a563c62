"""One request in a batch never harms another."""

import math
from functools import reduce

import pytest
import torch
from torch import Tensor, nn

from learning_at_home.errors import ExpertFailed, LearningAtHomeError, NonFiniteTensor
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec, OptimizerSpec
from node_agent.experts.expert import Expert
from node_agent.experts.gradients import Gradients, total_norm
from node_agent.runtime import computation
from node_agent.runtime.computation import compute

CPU = torch.device("cpu")
UID = ExpertUid("ffn0", (0,))
LAYER = LayerSpec(prefix="ffn0", grid=(2,), hidden_size=4, dtype="float64")
SGD = OptimizerSpec(name="sgd", learning_rate=1.0, clip_norm=0.5)
CLIPPED = LayerSpec(prefix="ffn0", grid=(2,), hidden_size=4, dtype="float64", optimizer=SGD)
UNCLIPPED = LayerSpec(prefix="ffn0", grid=(2,), hidden_size=4, dtype="float64", optimizer=OptimizerSpec(clip_norm=None))


class Picky(nn.Module):
    """A network that fails on rows that begin with 13, as one with a bug would."""

    error: Exception = IndexError("thirteen\nat line 7")

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, rows: Tensor) -> Tensor:
        if bool((rows[:, 0] == 13).any()):
            raise self.error
        answer: Tensor = self.linear(rows)
        return answer


class Crossed(nn.Module):
    """A network whose norms per request only a backward for each request tells: it uses its weights twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, rows: Tensor) -> Tensor:
        answer: Tensor = self.linear(self.linear(rows).relu())
        return answer


def rows(number: int, first: float | None = None) -> Tensor:
    made = torch.randn(number, 4, dtype=torch.float64)
    if first is not None:
        made[0, 0] = first
    return made


def twins(module_class=None, layer: LayerSpec = LAYER) -> tuple[Expert, Expert]:
    """Two experts with equal weights."""
    if module_class is None:
        return Expert.create(UID, layer, "digits", CPU), Expert.create(UID, layer, "digits", CPU)
    first, second = module_class(), module_class()
    second.load_state_dict(first.state_dict())
    return Expert(UID, layer, first, CPU), Expert(UID, layer, second, CPU)


def assert_same_weights(one: Expert, other: Expert) -> None:
    for ours, theirs in zip(one.module.parameters(), other.module.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_each_request_gets_its_own_rows():
    expert, alone = twins()
    requests = [rows(2), rows(1), rows(3)]

    outcomes = compute(expert, "forward", [[x] for x in requests])

    for x, outcome in zip(requests, outcomes, strict=True):
        assert isinstance(outcome, Tensor)
        torch.testing.assert_close(outcome, alone.forward(x))


def test_backwards_of_one_batch_are_one_step_with_the_sum_of_their_gradients():
    expert, alone = twins(layer=UNCLIPPED)
    requests = [(rows(2), rows(2)), (rows(3), rows(3))]

    outcomes = compute(expert, "backward", requests)

    together = alone.gradients(torch.cat([x for x, _ in requests]), torch.cat([g for _, g in requests]))
    alone.step(together)
    assert expert.updates == 1
    assert_same_weights(expert, alone)
    assert all(isinstance(outcome, Tensor) for outcome in outcomes)
    torch.testing.assert_close(torch.cat([o for o in outcomes if isinstance(o, Tensor)]), together.of_rows)


@pytest.mark.parametrize("module_class", [None, Crossed], ids=["together", "one at a time"])
@pytest.mark.parametrize("huge", [1.0, 1e30])
def test_each_request_is_clipped_on_its_own_and_one_step_takes_their_sum(module_class, huge):
    """By plain torch. SGD, so that a factor on a gradient shows in the weights."""
    expert, local = twins(module_class, layer=CLIPPED)
    requests = [(rows(2), rows(2) * huge), (rows(3), rows(3) * 1e-3), (rows(1), rows(1))]

    outcomes = compute(expert, "backward", requests)

    total = [torch.zeros_like(parameter) for parameter in local.module.parameters()]
    for (x, gradient), outcome in zip(requests, outcomes, strict=True):
        local.module.zero_grad()
        x.requires_grad_()
        local.module(x).backward(gradient)
        torch.nn.utils.clip_grad_norm_(local.module.parameters(), 0.5)
        for whole, parameter in zip(total, local.module.parameters(), strict=True):
            assert parameter.grad is not None
            whole += parameter.grad
        assert isinstance(outcome, Tensor)
        torch.testing.assert_close(outcome, x.grad, msg="the gradient of the inputs is as it is")
    with torch.no_grad():
        for whole, parameter in zip(total, local.module.parameters(), strict=True):
            parameter.sub_(whole)
    assert expert.updates == 1
    assert_same_weights(expert, local)


@pytest.mark.parametrize("scale", [1e6, 1e30])
def test_a_caller_with_huge_gradients_moves_the_weights_no_further_than_the_norm_in_float32(scale):
    layer = LayerSpec(prefix="ffn0", grid=(2,), hidden_size=16, optimizer=SGD)
    expert, alone = (Expert.create(UID, layer, "digits", CPU) for _ in range(2))
    greedy = (torch.randn(2, 16), torch.randn(2, 16) * scale)
    modest = (torch.randn(2, 16), torch.randn(2, 16) * 1e-3)

    outcomes = compute(expert, "backward", [greedy, modest])
    compute(alone, "backward", [modest])

    assert all(isinstance(outcome, Tensor) for outcome in outcomes)
    distance = [
        (one - other).detach() for one, other in zip(expert.module.parameters(), alone.module.parameters(), strict=True)
    ]
    assert total_norm(distance) == pytest.approx(0.5, rel=1e-3)


def test_a_large_request_is_computed_alone_beside_small_ones_computed_together(monkeypatch):
    expert, alone = twins(layer=CLIPPED)
    sizes: list[int] = []
    expert.module.register_forward_hook(lambda module, into, out: sizes.append(len(out)))
    monkeypatch.setattr(computation, "ALONE_USES", 0)
    monkeypatch.setattr(computation, "ALONE_FLOP", {"cpu": 4 * expert.backward_flop_per_row})
    requests = [(rows(3), rows(3)), (rows(5), rows(5)), (rows(1), rows(1))]
    compute(expert, "backward", [(rows(1), torch.zeros(1, 4, dtype=torch.float64))] * 2)  # tries what it can
    compute(alone, "backward", [(rows(1), torch.zeros(1, 4, dtype=torch.float64))] * 2)
    sizes.clear()

    outcomes = compute(expert, "backward", requests)

    assert sizes == [4, 5]
    expected = [alone.gradients(*request) for request in requests]
    for outcome, found in zip(outcomes, expected, strict=True):
        assert isinstance(outcome, Tensor)
        torch.testing.assert_close(outcome, found.of_rows)
    alone.step(reduce(Gradients.plus, [found.clipped(0.5) for found in expected]))
    assert_same_weights(expert, alone)


def test_without_a_norm_to_clip_to_a_gradient_near_overflow_fails_alone():
    """Its square would make the optimizer's state infinite, and the parameter immovable."""
    layer = LayerSpec(prefix="ffn0", grid=(2,), hidden_size=16, optimizer=OptimizerSpec(clip_norm=None))
    expert, alone = (Expert.create(UID, layer, "digits", CPU) for _ in range(2))
    greedy = (torch.randn(2, 16), torch.randn(2, 16) * 1e25)
    modest = (torch.randn(2, 16), torch.randn(2, 16))

    outcomes = compute(expert, "backward", [greedy, modest])
    compute(alone, "backward", [modest])

    assert isinstance(outcomes[0], ExpertFailed)
    assert "too large for an optimizer of float32" in str(outcomes[0])
    assert isinstance(outcomes[1], Tensor)
    assert_same_weights(expert, alone)


@pytest.mark.parametrize("operation", ["forward", "backward"])
def test_the_guilty_request_gets_the_error_and_the_others_their_answers(operation):
    expert, alone = twins(Picky)
    sound = [(rows(2), rows(2)), (rows(1), rows(1))]
    requests = [sound[0], (rows(2, first=13), rows(2)), sound[1]]

    outcomes = compute(expert, operation, requests)
    expected = compute(alone, operation, sound)

    assert isinstance(outcomes[1], ExpertFailed)
    assert str(outcomes[1]) == "ffn0.0: IndexError: thirteen"
    for outcome, wanted in zip([outcomes[0], outcomes[2]], expected, strict=True):
        assert isinstance(outcome, Tensor)
        assert isinstance(wanted, Tensor)
        torch.testing.assert_close(outcome, wanted)
    assert_same_weights(expert, alone)
    assert expert.updates == alone.updates == (1 if operation == "backward" else 0)


@pytest.mark.parametrize("operation", ["forward", "backward"])
@pytest.mark.parametrize(
    "error", [AssertionError("odd"), AttributeError("odd"), MemoryError("odd"), OSError("odd"), StopIteration("odd")]
)
def test_whatever_an_experts_code_raises_is_an_answer(operation, error, monkeypatch):
    expert, alone = twins(Picky)
    monkeypatch.setattr(Picky, "error", error)
    sound = (rows(2), rows(2))

    outcomes = compute(expert, operation, [sound, (rows(1, first=13), rows(1))])
    expected = compute(alone, operation, [sound])

    assert isinstance(outcomes[1], ExpertFailed)
    assert str(outcomes[1]) == f"ffn0.0: {type(error).__name__}: odd"
    assert isinstance(outcomes[0], Tensor)
    assert isinstance(expected[0], Tensor)
    torch.testing.assert_close(outcomes[0], expected[0])
    assert_same_weights(expert, alone)


def test_a_gradient_that_overflows_does_not_spoil_the_others_step():
    expert, alone = twins()
    sound = (rows(2), rows(2))
    huge = (rows(2), torch.full((2, 4), 1e308, dtype=torch.float64))

    outcomes = compute(expert, "backward", [huge, sound])
    compute(alone, "backward", [sound])

    assert isinstance(outcomes[0], LearningAtHomeError)
    assert isinstance(outcomes[1], Tensor)
    assert expert.updates == 1
    assert_same_weights(expert, alone)


def test_when_every_request_is_guilty_nothing_is_stepped():
    expert, untouched = twins(Picky)

    outcomes = compute(expert, "backward", [(rows(1, first=13), rows(1)), (rows(1, first=13), rows(1))])

    assert all(isinstance(outcome, ExpertFailed) for outcome in outcomes)
    assert expert.updates == 0
    assert_same_weights(expert, untouched)


class Overflowing(nn.Module):
    """Its output overflows on rows that begin with 13; one row spoils nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, rows: Tensor) -> Tensor:
        answer: Tensor = self.linear(rows)
        return torch.where(rows[:, :1] == 13, math.inf, answer)


class Mixing(Overflowing):
    """What no network may do: a row that is not finite spoils the others."""

    def forward(self, rows: Tensor) -> Tensor:
        answer: Tensor = self.linear(rows) + 0 * rows.sum()
        return answer


def test_an_output_that_is_not_finite_fails_its_own_request_only():
    expert, alone = twins(Overflowing)
    requests = [rows(2), rows(2, first=13), rows(1)]

    outcomes = compute(expert, "forward", [[x] for x in requests])

    assert isinstance(outcomes[1], ExpertFailed)
    assert str(outcomes[1]) == "ffn0.0: the output of these inputs is not finite"
    for index in (0, 2):
        outcome = outcomes[index]
        assert isinstance(outcome, Tensor)
        torch.testing.assert_close(outcome, alone.forward(requests[index]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("module_class", [None, Mixing, Picky], ids=["ffn", "mixing", "picky"])
def test_inputs_that_are_not_finite_are_their_callers_fault(value, module_class):
    expert, alone = twins(module_class)
    requests = [rows(2), rows(2, first=value), rows(1)]

    outcomes = compute(expert, "forward", [[x] for x in requests])

    assert isinstance(outcomes[1], NonFiniteTensor)
    assert str(outcomes[1]) == "ffn0.0: the inputs hold NaN or infinity; the expert takes finite numbers only"
    for index in (0, 2):
        outcome = outcomes[index]
        assert isinstance(outcome, Tensor)
        torch.testing.assert_close(outcome, alone.forward(requests[index]))


def test_what_raises_because_of_inputs_that_are_not_finite_is_their_callers_fault(monkeypatch):
    monkeypatch.setattr(Picky, "forward", lambda self, rows: rows if rows.isfinite().all() else 1 / 0)
    expert, _ = twins(Picky)

    outcomes = compute(expert, "forward", [[rows(1, first=math.nan)], [rows(1)]])

    assert isinstance(outcomes[0], NonFiniteTensor)
    assert isinstance(outcomes[1], Tensor)


class Halving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((4,), 0.5, dtype=torch.float64))

    def forward(self, rows: Tensor) -> Tensor:
        return rows * self.factor


def test_numbers_that_a_cpu_is_slow_with_are_zero_while_an_expert_computes():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    torch.set_flush_denormal(False)
    expert, _ = twins(Halving)
    tiny = torch.full((2, 4), 1e-310, dtype=torch.float64)

    (outcome,) = compute(expert, "forward", [[tiny]])

    assert isinstance(outcome, Tensor)
    assert outcome.count_nonzero() == 0
    assert (tiny * 0.5).count_nonzero() == 8, "elsewhere they are what they are"


def test_a_gradient_brings_what_a_backward_does_and_changes_nothing():
    expert = Expert.create(UID, CLIPPED, "digits", CPU)
    before = [parameter.detach().clone() for parameter in expert.module.parameters()]
    requests = [(rows(2), rows(2)), (rows(3), 100 * rows(3))]

    together = compute(expert, "gradient", requests)
    alone = [compute(expert, "gradient", [request])[0] for request in requests]

    assert all(torch.equal(now, then) for now, then in zip(expert.module.parameters(), before, strict=True))
    assert expert.updates == 0
    for one, other, backward in zip(together, alone, compute(expert, "backward", requests), strict=True):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(one, backward)


def test_a_gradient_that_cannot_be_computed_fails_alone():
    expert = Expert(UID, LAYER, Picky(), CPU)
    sound = (rows(2), rows(2))

    first, second = compute(expert, "gradient", [sound, (rows(2, 13.0), rows(2))])

    torch.testing.assert_close(first, compute(expert, "gradient", [sound])[0])
    assert isinstance(second, ExpertFailed)
    assert "thirteen" in second.message
    assert expert.updates == 0
