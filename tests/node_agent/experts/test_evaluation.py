"""Evaluation reaches an expert's network: no dropout, whoever trains beside it, and nothing is learned from it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from learning_at_home.errors import SpecMismatch
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec, OptimizerSpec, ProjectRecord
from learning_at_home.wire.messages import Operation, TensorSpec, Work
from node_agent.experts import architectures
from node_agent.experts.activations import Activations
from node_agent.experts.architectures import register_expert
from node_agent.experts.expert import Expert
from node_agent.experts.hosted import HostedExperts
from node_agent.runtime.admission import check_specs
from node_agent.runtime.computation import compute
from node_agent.runtime.group_computation import compute_group
from node_agent.runtime.outcomes import Outcome

CPU = torch.device("cpu")
UID = ExpertUid("ffn0", (0,))
HIDDEN = 8


class Dropping(nn.Module):
    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(HIDDEN, 32), nn.Dropout(0.5), nn.Linear(32, HIDDEN))

    def forward(self, rows: Tensor) -> Tensor:
        answer: Tensor = self.layers(rows)
        return answer


class Doubling(nn.Module):
    """Draws nothing, and yet differs between training and evaluation."""

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, rows: Tensor) -> Tensor:
        answer: Tensor = self.linear(rows)
        return 2 * answer if self.training else answer


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    before = dict(architectures._registry)
    register_expert("dropping")(Dropping)
    register_expert("doubling")(Doubling)
    yield
    architectures._registry.clear()
    architectures._registry.update(before)


def layer(architecture: str = "dropping") -> LayerSpec:
    optimizer = OptimizerSpec(name="sgd", learning_rate=0.1, clip_norm=None)
    return LayerSpec(
        prefix="ffn0", grid=(4,), architecture=architecture, hidden_size=HIDDEN, dtype="float64", optimizer=optimizer
    )


def drawn(number: int = 3) -> tuple[Tensor, Tensor]:
    rows, gradient = torch.randn(2, number, HIDDEN, dtype=torch.float64)
    return rows, gradient


def tensor(outcomes: list[Outcome], position: int = 0) -> Tensor:
    outcome = outcomes[position]
    assert isinstance(outcome, Tensor)
    return outcome


@pytest.mark.parametrize("architecture", ["dropping", "doubling"])
@pytest.mark.parametrize("company", [0, 2])
def test_outputs_and_gradients_are_those_of_the_network_in_evaluation_mode(architecture: str, company: int) -> None:
    expert = Expert.create(UID, layer(architecture), "digits", CPU)
    before = [parameter.clone() for parameter in expert.module.parameters()]
    (rows, gradient), others = drawn(), [drawn() for _ in range(company)]
    local = Expert.create(UID, layer(architecture), "digits", CPU).module.eval()
    leaf = rows.clone().requires_grad_()
    expected = local(leaf)

    output = tensor(compute(expert, "eval_forward", [(rows,), *((other,) for other, _ in others)]))
    of_rows = tensor(compute(expert, "eval_gradient", [(rows, gradient), *others]))

    torch.testing.assert_close(output, expected.detach())
    torch.testing.assert_close(of_rows, torch.autograd.grad(expected, leaf, gradient)[0])
    assert expert.updates == 0
    assert all(map(torch.equal, expert.module.parameters(), before))
    assert expert.module.training


def test_a_network_that_fails_in_evaluation_mode_goes_on_training(monkeypatch: pytest.MonkeyPatch) -> None:
    expert = Expert.create(UID, layer("doubling"), "digits", CPU)
    rows, gradient = drawn()
    monkeypatch.setattr(expert.module, "forward", lambda rows: 1 / 0)
    assert "ZeroDivisionError" in str(compute(expert, "eval_forward", [(rows,)])[0])
    assert "ZeroDivisionError" in str(compute(expert, "eval_gradient", [(rows, gradient)])[0])
    assert expert.module.training


@pytest.mark.parametrize("evaluation", ["eval_forward", "eval_gradient"])
def test_evaluation_neither_leaves_nor_takes_a_remembered_forward(evaluation: Operation) -> None:
    """A backward of the same rows must meet the mask of its own forward."""
    expert = Expert.create(UID, layer(), "digits", CPU)
    alone = Expert.create(UID, layer(), "digits", CPU)
    expert.activations, expert.forward_flop_per_row = Activations(1 << 20), 1 << 40
    rows, gradient = drawn()
    tensors = (rows,) if evaluation == "eval_forward" else (rows, gradient)

    compute(expert, evaluation, [tensors])
    assert expert.activations.num_bytes == 0
    trained = tensor(compute(expert, "forward", [(rows,)]))
    assert expert.activations.num_bytes
    compute(expert, evaluation, [tensors])
    assert expert.activations.num_bytes
    of_rows = tensor(compute(expert, "backward", [(rows, gradient)]))

    assert torch.equal(trained, tensor(compute(alone, "forward", [(rows,)])))
    assert torch.equal(of_rows, tensor(compute(alone, "backward", [(rows, gradient)])))


def test_a_group_computes_evaluations_together_in_evaluation_mode() -> None:
    project = ProjectRecord(id="digits", layers=(layer("doubling"),))
    uids = [ExpertUid("ffn0", (cell,)) for cell in range(3)]
    hosted = HostedExperts.create(uids, project, CPU, "on", 1 << 30)
    group = hosted.group_of("ffn0.0", "eval_forward")
    assert group is not None
    assert hosted.group_of("ffn0.0", "eval_gradient") is None
    work = [(expert, [(drawn(number + 1)[0],)]) for number, expert in enumerate(hosted.by_uid.values())]

    together = compute_group(group, "eval_forward", work)

    for (expert, requests), outcomes in zip(work, together, strict=True):
        torch.testing.assert_close(tensor(outcomes), tensor(compute(expert, "eval_forward", requests)))
        torch.testing.assert_close(2 * tensor(outcomes), tensor(compute(expert, "forward", requests)))


@pytest.mark.parametrize("operation", ["eval_forward", "eval_gradient"])
def test_shared_parameters_are_not_evaluated(operation: Operation) -> None:
    shared = LayerSpec(prefix="trunk", grid=(1,), architecture="parameters", hidden_size=HIDDEN)
    expert = Expert.create(ExpertUid("trunk", (0,)), shared, "digits", CPU)
    specs = (TensorSpec("float32", (1, *shared.input_shape)), TensorSpec("float32", (1, *shared.row_shape)))
    with pytest.raises(SpecMismatch, match="no gradient to ask for"):
        check_specs(expert, Work(1, "trunk.0", operation, specs[: 1 + (operation == "eval_gradient")]), 4_096)
