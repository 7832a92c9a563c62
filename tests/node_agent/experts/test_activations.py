"""A forward that is remembered is not computed again, and what is remembered never changes a result."""

import gc
from collections.abc import Sequence

import psutil
import pytest
import torch
from torch import Tensor

from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec, OptimizerSpec, ProjectRecord
from node_agent.experts.activations import MAX_PER_EXPERT, Activations, Forward
from node_agent.experts.expert import Expert
from node_agent.experts.hosted import HostedExperts
from node_agent.runtime.computation import compute
from node_agent.runtime.outcomes import Outcome

HIDDEN, ROWS = 256, 64  # enough work to be remembered
LAYER = LayerSpec(prefix="ffn0", grid=(2,), architecture="mlp", hidden_size=HIDDEN, optimizer=OptimizerSpec())
PROJECT = ProjectRecord(id="digits", layers=(LAYER,))
UIDS = [ExpertUid("ffn0", (index,)) for index in range(2)]
CPU = torch.device("cpu")


class Counted:
    """Experts that remember, and how often the first one's network is run."""

    def __init__(self, layer: LayerSpec = LAYER, spare_bytes: int | None = None) -> None:
        project = ProjectRecord(id="digits", layers=(layer,))
        self.hosted = HostedExperts.create(UIDS, project, CPU, spare_bytes=spare_bytes)
        self.expert, self.other = self.hosted.by_uid.values()
        self.expert.forward(torch.randn(1_000, HIDDEN), remember=True)  # what a row takes is measured by running it
        self.expert.activations.forget(str(self.expert.uid))
        self.runs = 0
        self.expert.module.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.runs += 1

    def forward(self, *requests: Tensor) -> list[Tensor]:
        return tensors(compute(self.expert, "forward", [(rows,) for rows in requests]))

    def backward(self, *requests: tuple[Tensor, Tensor]) -> list[Tensor]:
        return tensors(compute(self.expert, "backward", requests))


@pytest.fixture
def counted() -> Counted:
    return Counted()


def rows(number: int = ROWS) -> Tensor:
    return torch.randn(number, HIDDEN)


def tensors(outcomes: Sequence[Outcome]) -> list[Tensor]:
    """All of them; none is an error."""
    found = [outcome for outcome in outcomes if isinstance(outcome, Tensor)]
    assert len(found) == len(outcomes)
    return found


def plain() -> Expert:
    """The same expert, which remembers nothing."""
    return Expert.create(UIDS[0], LAYER, PROJECT.id, CPU)


def test_a_backward_of_the_rows_of_a_forward_does_not_run_the_network_again(counted):
    x, gradient = rows(), rows()
    local = plain()

    (answer,) = counted.forward(x)
    (of_rows,) = counted.backward((x.clone(), gradient))

    assert counted.runs == 1
    torch.testing.assert_close(answer, local.forward(x))
    (expected,) = tensors(compute(local, "backward", [(x, gradient)]))
    assert torch.equal(of_rows, expected)
    for ours, theirs in zip(counted.expert.module.parameters(), local.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_next_backward_of_the_same_rows_meets_the_new_weights(counted):
    x, gradient = rows(), rows()
    local = plain()

    counted.forward(x)
    counted.forward(x)
    counted.backward((x, gradient))
    (again,) = counted.backward((x, gradient))

    compute(local, "backward", [(x, gradient)])
    (expected,) = tensors(compute(local, "backward", [(x, gradient)]))
    assert counted.runs == 3
    assert torch.equal(again, expected)


def test_a_step_of_anybody_makes_the_expert_forget_and_leaves_others_alone(counted):
    x, gradient = rows(), rows()
    counted.forward(x)
    compute(counted.other, "forward", [(x,)])

    counted.backward((rows(), gradient))
    counted.backward((x, gradient))

    assert counted.runs == 3
    assert counted.other.activations.take(str(UIDS[1]), x) is not None


@pytest.mark.parametrize("change", [lambda x: x + 1, lambda x: x[:-1], lambda x: x.t().contiguous().t()])
def test_other_rows_are_computed(counted, change):
    x = rows()
    counted.forward(x)

    counted.backward((change(x), rows()[: len(change(x))]))

    assert counted.runs == 2


def test_a_zero_with_another_sign_is_another_number(counted):
    x = torch.zeros(ROWS, HIDDEN)
    counted.forward(x)

    counted.backward((-x, rows()))

    assert counted.runs == 2


def test_small_forwards_and_those_in_company_are_not_remembered(counted):
    counted.forward(rows(1))
    counted.forward(rows(), rows())

    assert counted.hosted.by_uid[str(UIDS[0])].activations.num_bytes == 0


def test_rows_that_change_after_a_forward_are_not_taken_for_the_same(counted):
    x = rows()
    counted.forward(x)
    before = x.clone()
    x.mul_(2)  # nobody does; it would be seen all the same

    counted.backward((before, rows()))

    assert counted.runs == 2


def test_experts_remember_no_more_than_half_of_the_memory_to_spare():
    assert HostedExperts.create(UIDS, PROJECT, CPU, spare_bytes=1_000_000).by_uid[
        str(UIDS[0])
    ].activations.limit_bytes == (500_000)
    assert HostedExperts.create(UIDS, PROJECT, CPU, spare_bytes=-1).by_uid[str(UIDS[0])].activations.limit_bytes == 0


def test_what_a_forward_keeps_is_counted_and_never_too_little(counted):
    counted.forward(rows())

    per_row = 4 * (HIDDEN + 4 * HIDDEN + HIDDEN)  # the rows, what the ReLU let through, the output
    assert ROWS * per_row <= counted.expert.activations.num_bytes <= 2 * ROWS * per_row


def test_forwards_that_no_backward_follows_leave_no_memory_behind(counted):
    def evaluate(times: int) -> int:
        for _ in range(times):
            counted.forward(torch.randn(512, HIDDEN))
        counted.expert.forget()
        gc.collect()
        return psutil.Process().memory_info().rss

    before = evaluate(10)
    assert evaluate(100) - before < 50e6  # they keep 3 MB each


def test_a_forward_that_is_too_large_to_remember_is_computed_as_ever():
    counted = Counted(spare_bytes=200_000)
    x = rows()
    (answer,) = counted.forward(x)

    assert not answer.requires_grad
    assert counted.expert.activations.num_bytes == 0


def test_weights_that_somebody_else_changed_are_met_as_they_are(counted):
    x, gradient = rows(), rows()
    local = plain()
    counted.forward(x)
    for expert in (counted.expert, local):
        with torch.no_grad():
            for parameter in expert.module.parameters():
                parameter.mul_(1.5)

    (of_rows,) = counted.backward((x, gradient))

    (expected,) = tensors(compute(local, "backward", [(x, gradient)]))
    assert counted.runs == 2
    assert torch.equal(of_rows, expected)


def test_an_expert_that_is_frozen_forgets_nobodys_forward_for_a_backward_of_another():
    frozen = LayerSpec(
        prefix="ffn0", grid=(2,), architecture="mlp", hidden_size=HIDDEN, optimizer=OptimizerSpec(name="frozen")
    )
    counted = Counted(layer=frozen)
    x = rows()
    counted.forward(x)

    counted.backward((rows(), rows()))
    counted.backward((x, rows()))

    assert counted.runs == 2


def forward(number: int, num_bytes: int = 10) -> Forward:
    leaf = torch.full((2, 2), float(number))
    return Forward(leaf, leaf, num_bytes)


def test_the_oldest_makes_room():
    activations = Activations(limit_bytes=30)
    for number in range(4):
        activations.keep(f"e{number}", forward(number))

    assert activations.num_bytes == 30
    assert activations.take("e0", forward(0).rows) is None
    assert activations.take("e3", forward(3).rows) is not None
    assert activations.num_bytes == 20


def test_an_expert_has_a_few():
    activations = Activations(limit_bytes=1_000)
    for number in range(MAX_PER_EXPERT + 1):
        activations.keep("e", forward(number))

    assert activations.num_bytes == 10 * MAX_PER_EXPERT
    assert activations.take("e", forward(0).rows) is None
    activations.forget("e")
    activations.forget("e")
    assert activations.num_bytes == 0
