"""One request in a batch never harms another."""

import math

import pytest
import torch
from torch import Tensor, nn

from learning_at_home.errors import ExpertFailed, LearningAtHomeError
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec
from node_agent.experts.expert import Expert
from node_agent.runtime.computation import compute

CPU = torch.device("cpu")
UID = ExpertUid("ffn0", (0,))
LAYER = LayerSpec(prefix="ffn0", grid=(2,), hidden_size=4, dtype="float64")


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


def rows(number: int, first: float | None = None) -> Tensor:
    made = torch.randn(number, 4, dtype=torch.float64)
    if first is not None:
        made[0, 0] = first
    return made


def twins(module_class=None) -> tuple[Expert, Expert]:
    """Two experts with equal weights."""
    if module_class is None:
        return Expert.create(UID, LAYER, "digits", CPU), Expert.create(UID, LAYER, "digits", CPU)
    first, second = module_class(), module_class()
    second.load_state_dict(first.state_dict())
    return Expert(UID, LAYER, first, CPU), Expert(UID, LAYER, second, CPU)


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
    expert, alone = twins()
    requests = [(rows(2), rows(2)), (rows(3), rows(3))]

    outcomes = compute(expert, "backward", requests)

    together = alone.gradients(torch.cat([x for x, _ in requests]), torch.cat([g for _, g in requests]))
    alone.step(together.of_parameters)
    assert expert.updates == 1
    assert_same_weights(expert, alone)
    assert all(isinstance(outcome, Tensor) for outcome in outcomes)
    torch.testing.assert_close(torch.cat([o for o in outcomes if isinstance(o, Tensor)]), together.of_rows)


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


def test_an_output_that_is_not_finite_fails_its_own_request_only():
    expert, _ = twins(Picky)
    with torch.no_grad():
        for parameter in expert.module.parameters():
            parameter.fill_(1e10)

    outcomes = compute(expert, "forward", [[rows(1) * 1e300], [rows(1)]])

    assert isinstance(outcomes[0], ExpertFailed)
    assert isinstance(outcomes[1], Tensor)
    assert math.isfinite(outcomes[1].sum().item())
