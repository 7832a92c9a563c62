"""Experts computed as a group: what each gives alone, and no request harms another."""

import math

import pytest
import torch
from torch import Tensor, nn

from learning_at_home.errors import ExpertFailed, NonFiniteTensor
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec, OptimizerSpec, ProjectRecord
from node_agent.experts.architectures import Architecture, _registry
from node_agent.experts.expert import Expert
from node_agent.experts.hosted import HostedExperts
from node_agent.runtime import group_computation
from node_agent.runtime.computation import compute
from node_agent.runtime.group_computation import compute_group
from node_agent.runtime.outcomes import Outcome

CPU = torch.device("cpu")
NUM_EXPERTS = 6
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}
OPTIMIZERS = {
    "adam": OptimizerSpec(learning_rate=0.01),
    "unclipped adamw": OptimizerSpec(name="adamw", learning_rate=0.01, weight_decay=0.1, clip_norm=None),
    "momentum": OptimizerSpec(name="sgd", learning_rate=0.1, momentum=0.9, clip_norm=0.5),
    "frozen": OptimizerSpec(name="frozen"),
    "gathering": OptimizerSpec(name="sgd", learning_rate=0.1, warmup_updates=3, update_rows=6),
}
# by position, the rows of each of its requests
WORK = {
    "one request each, all experts": {position: [3] for position in range(NUM_EXPERTS)},
    "one request each, different rows": {0: [1], 1: [9], 2: [4], 3: [30], 5: [2]},
    "several requests of some": {0: [2, 1, 3], 2: [5], 4: [1, 1], 5: [4]},
    "two far apart": {0: [2], 5: [3, 100]},
}


class Setting:
    """Twice the same experts: one set in a group, one without."""

    def __init__(self, **layer) -> None:
        given = {"hidden_size": 8, "dtype": "float64", **layer}
        self.layer = LayerSpec(prefix="ffn0", grid=(NUM_EXPERTS,), **given)
        project = ProjectRecord(id="digits", layers=(self.layer,))
        uids = [ExpertUid("ffn0", (cell,)) for cell in range(NUM_EXPERTS)]
        self.hosted = HostedExperts.create(uids, project, CPU, "on")
        alone = HostedExperts.create(uids, project, CPU, "off")
        self.experts = list(self.hosted.by_uid.values())
        self.alone = list(alone.by_uid.values())

    def requests(self, work: dict[int, list[int]]) -> dict[int, list[tuple[Tensor, Tensor]]]:
        def draw(rows: int) -> Tensor:
            return torch.randn(rows, *self.layer.row_shape, dtype=getattr(torch, self.layer.dtype))

        return {position: [(draw(rows), draw(rows)) for rows in sizes] for position, sizes in work.items()}

    def both(self, operation, requests) -> tuple[dict[int, list[Outcome]], dict[int, list[Outcome]]]:
        group = self.hosted.group_of("ffn0.0", operation)
        assert group is not None
        batches = [(self.experts[position], own) for position, own in requests.items()]
        found = compute_group(group, operation, batches)
        expected = {position: compute(self.alone[position], operation, own) for position, own in requests.items()}
        return dict(zip(requests, found, strict=True)), expected

    def check(self, ours: dict[int, list[Outcome]], theirs: dict[int, list[Outcome]]) -> None:
        """Outcomes, weights, optimizer state and counts of steps are near; experts without work are as they were."""
        near = TOLERANCE[self.experts[0].dtype]
        assert list(ours) == list(theirs)
        for position, outcomes in ours.items():
            for outcome, expected in zip(outcomes, theirs[position], strict=True):
                if isinstance(expected, Tensor):
                    assert isinstance(outcome, Tensor)
                    torch.testing.assert_close(outcome, expected, rtol=near, atol=near)
                else:
                    assert str(outcome) == str(expected)
        for position, (grouped, single) in enumerate(zip(self.experts, self.alone, strict=True)):
            rtol = near if position in ours else 0.0
            assert grouped.updates == single.updates
            pairs: list[tuple[Tensor, Tensor]] = []
            pairs += zip(grouped.module.parameters(), single.module.parameters(), strict=True)
            assert grouped._optimizer.state.keys() == single._optimizer.state.keys()
            for key, state in grouped._optimizer.state.items():
                pairs += [(state[name], single._optimizer.state[key][name]) for name in state]
            for one, other in pairs:
                torch.testing.assert_close(one.detach(), other.detach(), rtol=rtol, atol=rtol)


@pytest.fixture
def not_alone(monkeypatch):
    """Fails the test when anything is computed alone."""

    def refuse(expert: Expert, operation, requests):
        pytest.fail(f"{expert.uid} was computed alone")

    monkeypatch.setattr(group_computation, "compute", refuse)


@pytest.mark.parametrize("architecture", ["ffn", "mlp", "nop"])
@pytest.mark.parametrize("work", WORK.values(), ids=WORK.keys())
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_a_group_does_what_its_experts_do_one_at_a_time(architecture, work, optimizer, not_alone):
    setting = Setting(architecture=architecture, optimizer=optimizer)

    for operation in ("forward", "backward", "backward", "forward"):
        requests = setting.requests(work)
        setting.check(*setting.both(operation, requests))


@pytest.mark.parametrize("layer", [{}, {"sequence_length": 3}], ids=["rows", "sequences"])
def test_a_group_does_so_in_float32_and_on_sequences(layer, not_alone):
    setting = Setting(dtype="float32", hidden_size=16, **layer)

    for operation in ("forward", "backward"):
        setting.check(*setting.both(operation, setting.requests(WORK["several requests of some"])))


@pytest.mark.parametrize("bounds", [(2, 1 << 20), (6, 8), (1, 1)], ids=["few experts", "few rows", "one at a time"])
def test_a_group_that_memory_does_not_hold_is_computed_in_portions(bounds, monkeypatch, not_alone):
    setting = Setting()
    group = setting.hosted.group_of("ffn0.0", "backward")
    assert group is not None
    monkeypatch.setattr(group.stack, "bounds", type(group.stack.bounds)(*bounds))

    for operation in ("forward", "backward"):
        setting.check(*setting.both(operation, setting.requests(WORK["several requests of some"])))


def test_experts_with_many_rows_are_computed_alone_where_company_does_not_pay(monkeypatch):
    setting = Setting()
    group = setting.hosted.group_of("ffn0.0", "forward")
    assert group is not None
    monkeypatch.setitem(group.longest, "forward", 4)
    alone: list[str] = []

    def compute_alone(expert: Expert, operation, requests) -> list[Outcome]:
        alone.append(str(expert.uid))
        return compute(expert, operation, requests)

    monkeypatch.setattr(group_computation, "compute", compute_alone)

    setting.check(*setting.both("forward", setting.requests({0: [2], 1: [3, 2], 2: [4], 3: [9]})))

    assert alone == ["ffn0.1", "ffn0.3"]


@pytest.mark.parametrize("operation", ["forward", "backward"])
def test_a_guilty_request_fails_alone_and_everything_else_is_as_without_it(operation):
    """Its finite rows become numbers that are not."""
    setting = Setting(architecture="mlp")
    with torch.no_grad():
        for parameter in (*setting.experts[1].module.parameters(), *setting.alone[1].module.parameters()):
            parameter.mul_(100)
    requests = setting.requests({0: [2], 1: [3, 2], 2: [4], 3: [9]})
    requests[1][0] = (torch.full_like(requests[1][0][0], 1e308), requests[1][0][1])

    ours, theirs = setting.both(operation, requests)

    assert isinstance(ours[1][0], ExpertFailed)
    assert [isinstance(outcome, Tensor) for position in ours for outcome in ours[position]].count(False) == 1
    setting.check(ours, theirs)


def test_inputs_that_are_not_finite_are_their_callers_fault():
    setting = Setting()
    requests = setting.requests({0: [2], 1: [3, 2], 2: [4]})
    requests[1][1][0][0, 0] = math.nan

    ours, theirs = setting.both("forward", requests)

    assert isinstance(ours[1][1], NonFiniteTensor)
    setting.check(ours, theirs)


def test_a_caller_with_huge_gradients_is_clipped_in_a_group_too():
    setting = Setting(dtype="float32", optimizer=OptimizerSpec(name="sgd", learning_rate=1.0, clip_norm=0.5))
    requests = setting.requests({0: [2, 3], 1: [1], 3: [2]})
    requests[0][0] = (requests[0][0][0], requests[0][0][1] * 1e25)

    setting.check(*setting.both("backward", requests))

    assert [expert.updates for expert in setting.experts] == [1, 1, 0, 1, 0, 0]


def test_when_the_product_itself_fails_every_expert_is_computed_alone(monkeypatch):
    setting = Setting()
    group = setting.hosted.group_of("ffn0.0", "backward")
    assert group is not None

    def fail(*_):
        raise RuntimeError("out of memory")

    for name in ("forward", "gradients"):
        monkeypatch.setattr(group.stack, name, fail)

    for operation in ("forward", "backward"):
        setting.check(*setting.both(operation, setting.requests(WORK["several requests of some"])))


def test_a_step_that_fails_is_never_taken_again(monkeypatch):
    setting = Setting()

    def fail(*_):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(group_computation, "apply_gradients", fail)
    before = [[parameter.detach().clone() for parameter in expert.module.parameters()] for expert in setting.experts]

    ours, _ = setting.both("backward", setting.requests({0: [2], 1: [3, 2]}))

    assert [str(outcome) for outcome in ours[1]] == ["ffn0.1: RuntimeError: the device is gone"] * 2
    assert all(isinstance(outcome, ExpertFailed) for outcome in ours[0])
    for expert, weights in zip(setting.experts, before, strict=True):
        assert all(map(torch.equal, expert.module.parameters(), weights))


def test_a_lone_batch_needs_no_group():
    setting = Setting()
    requests = setting.requests({2: [2, 3]})

    found = compute_group(None, "forward", [(setting.experts[2], requests[2])])

    for ours, theirs in zip(found[0], compute(setting.alone[2], "forward", requests[2]), strict=True):
        assert isinstance(ours, Tensor)
        assert isinstance(theirs, Tensor)
        assert torch.equal(ours, theirs)


class Choosing(nn.Module):
    """Decides by what its rows hold, which a grouped product cannot."""

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(layer.hidden_size, layer.hidden_size)

    def forward(self, rows: Tensor) -> Tensor:
        answer: Tensor = self.linear(rows) if bool(rows.sum() > 0) else -self.linear(rows)
        return answer


class Normalising(Choosing):
    """Divides by what is zero where a row is padding: its gradients are no numbers then."""

    def forward(self, rows: Tensor) -> Tensor:
        answer: Tensor = self.linear(rows / rows.norm(dim=-1, keepdim=True))
        return answer


class Remembering(Choosing):
    """Has a buffer, which is no parameter."""

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__(layer)
        self.register_buffer("scale", torch.ones(1))


def test_attention_that_would_run_one_expert_after_the_other_stays_ungrouped():
    """torch has no batching rule for the CPU's attention."""
    layer = LayerSpec(prefix="ffn0", grid=(3,), architecture="transformer", hidden_size=8, sequence_length=3)
    uids = [ExpertUid("ffn0", (cell,)) for cell in range(3)]

    hosted = HostedExperts.create(uids, ProjectRecord(id="digits", layers=(layer,)), CPU, "on")

    assert hosted.group_of("ffn0.0", "forward") is None


@pytest.mark.parametrize("network", [Choosing, Normalising, Remembering])
def test_an_architecture_that_cannot_be_stacked_stays_ungrouped(network, monkeypatch):
    monkeypatch.setitem(_registry, "odd", Architecture("odd", network))
    layer = LayerSpec(prefix="ffn0", grid=(3,), architecture="odd", hidden_size=4)
    uids = [ExpertUid("ffn0", (cell,)) for cell in range(3)]

    hosted = HostedExperts.create(uids, ProjectRecord(id="digits", layers=(layer,)), CPU, "on")

    assert list(hosted.by_uid) == ["ffn0.0", "ffn0.1", "ffn0.2"]
    assert hosted.group_of("ffn0.0", "forward") is None
