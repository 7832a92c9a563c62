"""Requests of several tensors: in one batch, each by itself, whatever the others send; and code that wants to exit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from learning_at_home.errors import BatchTooLarge, ConfigError, EmptyBatch, ExpertFailed, NonFiniteTensor, SpecMismatch
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec, OptimizerSpec, ProjectRecord
from learning_at_home.tensors.frames import to_frames
from learning_at_home.wire.messages import Operation, TensorSpec, Work
from node_agent.experts import architectures
from node_agent.experts.architectures import build_checked, register_expert
from node_agent.experts.grouping import make_expert
from node_agent.experts.hosted import HostedExperts
from node_agent.experts.memory import measure
from node_agent.experts.nested_expert import NestedExpert
from node_agent.experts.networks import Leaves
from node_agent.runtime.admission import check_specs, unpack
from node_agent.runtime.computation import compute
from node_agent.runtime.outcomes import Outcome
from node_agent.runtime.packing import packed_answers

CPU = torch.device("cpu")
UID = ExpertUid("ffn0", (0,))
SCHEMA = "(float[4], weight=float[], token=int64[]) -> (float[4], {score: float[]})"


class Weighed(nn.Module):
    dropout = 0.0
    seen: list[int]

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(8, 4), nn.Linear(4, 4)
        self.drop = nn.Dropout(self.dropout)
        self.seen = []  # rows of each forward

    def forward(self, rows: Tensor, *, weight: Tensor, token: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.seen.append(len(rows))
        if bool((token == 7).any()):
            raise SystemExit("a token that ends processes")
        y: Tensor = self.drop(self.linear(rows + self.table(token))) * weight.unsqueeze(1)
        return y, {"score": y.sum(1)}


class Dropping(Weighed):
    dropout = 0.5


class Exiting(nn.Module):
    """Of one tensor: what ends a process, where a row asks for it."""

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, rows: Tensor) -> Tensor:
        if bool((rows[:, 0] == 1).any()):
            raise SystemExit(3)
        if bool((rows[:, 0] == 2).any()):
            raise BaseException("neither Exception nor exit")
        answer: Tensor = self.linear(rows)
        return answer


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    torch.manual_seed(0)
    before = dict(architectures._registry)
    register_expert("weighed")(Weighed)
    register_expert("dropping")(Dropping)
    register_expert("exiting")(Exiting)
    yield
    architectures._registry.clear()
    architectures._registry.update(before)


def layer(architecture: str = "weighed", clip_norm: float | None = None, **changes: object) -> LayerSpec:
    optimizer = OptimizerSpec(name="sgd", learning_rate=0.1, clip_norm=clip_norm)
    fields: dict[str, object] = {"schema": SCHEMA, "optimizer": optimizer, "dtype": "float64", **changes}
    return LayerSpec(prefix="ffn0", grid=(2,), architecture=architecture, hidden_size=4, **fields)  # type: ignore[arg-type]


def made(spec: LayerSpec) -> NestedExpert:
    expert = make_expert(UID, spec, "digits", CPU)
    assert isinstance(expert, NestedExpert)
    return expert


def inputs(number: int, token: int = 1) -> Leaves:
    floats = torch.randn(number, 4, dtype=torch.float64), torch.rand(number, dtype=torch.float64)
    return *floats, torch.full((number,), token)


def with_gradients(number: int, token: int = 1) -> Leaves:
    gradients = torch.randn(number, 4, dtype=torch.float64), torch.randn(number, dtype=torch.float64)
    return *inputs(number, token), *gradients


def tensors(outcome: Outcome) -> Leaves:
    assert isinstance(outcome, tuple), outcome
    return outcome


def test_a_batch_is_one_product_and_gives_each_request_what_it_gets_alone() -> None:
    expert = made(layer())
    requests = [inputs(number) for number in (2, 1, 4)]
    alone = [tensors(compute(expert, "forward", [request])[0]) for request in requests]
    expert.module.seen.clear()  # type: ignore[operator, union-attr]
    together = compute(expert, "forward", requests)
    assert expert.module.seen == [7]
    for outcome, own in zip(together, alone, strict=True):
        for ours, theirs in zip(tensors(outcome), own, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("clip_norm", [None, 0.01])
@pytest.mark.parametrize("operation", ["backward", "gradient", "eval_gradient"])
def test_backwards_in_one_batch_are_those_of_plain_torch(clip_norm: float | None, operation: Operation) -> None:
    expert, local = made(layer(clip_norm=clip_norm)), made(layer(clip_norm=clip_norm)).module
    requests = [with_gradients(number) for number in (2, 1, 4)]
    total = [torch.zeros_like(parameter) for parameter in local.parameters()]
    expected = []
    for rows, weight, token, of_rows, of_score in requests:
        leaves = rows.clone().requires_grad_(), weight.clone().requires_grad_()
        local.zero_grad()
        y, rest = local(leaves[0], weight=leaves[1], token=token)
        torch.autograd.backward([y, rest["score"]], [of_rows, of_score])
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(local.parameters(), clip_norm)
        for whole, parameter in zip(total, local.parameters(), strict=True):
            assert parameter.grad is not None
            whole += parameter.grad
        expected.append([leaf.grad for leaf in leaves])
    outcomes = compute(expert, operation, requests)
    for outcome, wanted in zip(outcomes, expected, strict=True):
        for ours, theirs in zip(tensors(outcome), wanted, strict=True):
            torch.testing.assert_close(ours, theirs)
    rate = 0.1 if operation == "backward" else 0.0
    assert expert.updates == (operation == "backward")
    for parameter, own, whole in zip(expert.module.parameters(), local.parameters(), total, strict=True):
        torch.testing.assert_close(parameter, own - rate * whole)


@pytest.mark.parametrize("operation", ["forward", "backward", "gradient"])
def test_who_exits_or_sends_what_is_not_finite_fails_alone(operation: Operation) -> None:
    expert = made(layer())
    draw = inputs if operation == "forward" else with_gradients
    spoilt = draw(2)
    spoilt[1][0] = torch.nan
    sound = draw(2)
    alone = tensors(compute(made(layer()), operation, [sound])[0])
    outcomes = compute(expert, operation, [draw(3, 7), spoilt, sound])
    assert isinstance(outcomes[0], ExpertFailed)
    assert "SystemExit: a token that ends processes" in outcomes[0].message
    assert isinstance(outcomes[1], ExpertFailed if operation == "gradient" else NonFiniteTensor)
    for ours, theirs in zip(tensors(outcomes[2]), alone, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert expert.updates == (operation == "backward")


@pytest.mark.parametrize("company", [False, True])
@pytest.mark.parametrize("operation", ["forward", "backward", "gradient", "eval_forward"])
def test_whatever_an_expert_of_one_tensor_raises_is_its_callers_answer(operation: Operation, company: bool) -> None:
    expert = make_expert(UID, layer("exiting", 1.0, schema=None), "digits", CPU)
    ends, odd, sound = (torch.full((1, 4), number, dtype=torch.float64) for number in (1.0, 2.0, 3.0))
    requests = [(rows,) if operation.endswith("forward") else (rows, rows) for rows in (ends, odd, sound)]
    if company:
        outcomes = compute(expert, operation, requests)
    else:
        outcomes = [compute(expert, operation, [request])[0] for request in requests]
    assert "ffn0.0: SystemExit: 3" in str(outcomes[0])
    assert "ffn0.0: BaseException: neither Exception nor exit" in str(outcomes[1])
    assert isinstance(outcomes[2], Tensor)


def test_a_person_may_still_interrupt_what_runs_in_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    expert = make_expert(UID, layer("exiting", schema=None), "digits", CPU)

    def interrupted(rows: Tensor) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(expert.module, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compute(expert, "forward", [(torch.zeros(1, 4, dtype=torch.float64),)])


def test_dropout_of_a_request_follows_from_all_its_inputs_and_is_off_in_evaluation() -> None:
    expert = made(layer("dropping"))
    assert expert.is_random
    request = with_gradients(3)
    other = (*request[:2], torch.full((3,), 2), *request[3:])
    first, again, beside = (
        compute(expert, "forward", batch)[-1] for batch in ([request[:3]], [request[:3]], [inputs(2), request[:3]])
    )
    assert torch.equal(tensors(first)[0], tensors(again)[0])
    assert torch.equal(tensors(first)[0], tensors(beside)[0])
    masked = tensors(first)[0] == 0
    assert not torch.equal(masked, tensors(compute(expert, "forward", [other[:3]])[0])[0] == 0)
    of_rows, of_weight = tensors(compute(expert, "gradient", [request])[0])
    assert masked.any()
    rows, weight = request[0].clone().requires_grad_(), request[1].clone().requires_grad_()
    with expert.numbers_for(*request[:3]):
        y, rest = expert.module(rows, weight=weight, token=request[2])
    found = torch.autograd.grad([y, rest["score"]], [rows, weight], list(request[3:]))
    torch.testing.assert_close((of_rows, of_weight), found)
    evaluated = tensors(compute(expert, "eval_forward", [request[:3]])[0])[0]
    assert not (evaluated == 0).any()


def work(operation: Operation, *specs: TensorSpec) -> Work:
    return Work(1, "ffn0.0", operation, specs)


def specs_of(leaves: Leaves) -> list[TensorSpec]:
    return [to_frames(leaf)[0] for leaf in leaves]


def test_a_node_checks_every_tensor_of_every_request_by_its_path() -> None:
    expert = made(layer())
    sound = specs_of(with_gradients(3))
    assert check_specs(expert, work("forward", *sound[:3]), 10) == 3
    assert check_specs(expert, work("backward", *sound), 10) == 3
    wrong: list[tuple[type[Exception], str, Operation, list[TensorSpec]]] = [
        (SpecMismatch, r"forward takes input 0, input weight, input token; 2 tensor\(s\) came", "forward", sound[:2]),
        (SpecMismatch, "gradient of output 0, the gradient of output 1.score; 3 tensor", "backward", sound[:3]),
        (
            SpecMismatch,
            r"input token is int32\[3\], .* takes int64\[\*\]",
            "forward",
            [*sound[:2], TensorSpec("int32", (3,))],
        ),
        (
            SpecMismatch,
            r"input weight is float64\[3, 1\]",
            "forward",
            [sound[0], TensorSpec("float64", (3, 1)), sound[2]],
        ),
        (SpecMismatch, "input token has 2 rows, input 0 has 3", "forward", [*sound[:2], TensorSpec("int64", (2,))]),
        (SpecMismatch, "output 1.score has 4 rows", "gradient", [*sound[:4], TensorSpec("float64", (4,))]),
        (EmptyBatch, "a batch of no rows", "forward", specs_of(inputs(0))),
        (BatchTooLarge, "11 rows; this node takes 10", "forward", specs_of(inputs(11))),
    ]
    for error, said, operation, specs in wrong:
        with pytest.raises(error, match=said):
            check_specs(expert, work(operation, *specs), 10)


def test_a_gradient_that_is_not_finite_is_refused_by_its_path_at_the_door() -> None:
    expert, request = made(layer()), with_gradients(2)
    request[4][1] = torch.inf
    specs, frames = specs_of(request), [[memoryview(bytes(to_frames(leaf)[1][0]))] for leaf in request]
    with pytest.raises(NonFiniteTensor, match=r"the gradient of output 1\.score holds NaN or infinity"):
        unpack(expert, work("backward", *specs), frames)
    arrived = unpack(expert, work("forward", *specs[:3]), frames[:3])
    assert all(map(torch.equal, arrived, request[:3]))


def test_answers_are_all_as_they_are_when_one_does_not_fit_the_codec() -> None:
    small, large = torch.ones(2, 4), torch.full((2,), 1e30)
    specs, frames, codec = packed_answers([small, large], "float16", 1 << 20)
    assert (codec, [len(frame) for frame in frames]) == ("none", [32, 8])
    assert packed_answers([small, small], "float16", 1 << 20)[2] == "float16"
    assert [str(spec) for spec in specs] == ["float32[2, 4]", "float32[2]"]


@pytest.mark.parametrize(
    "schema, said",
    [
        ("(float[4], weight=float[]) -> float[4]", "weighed cannot compute .*token"),
        ("(float[4], weight=float[], token=int64[]) -> float[4]", "output 0 is tuple; it must be float64"),
        (SCHEMA.replace("score", "scores"), "output.1 has score instead of scores"),
        (
            SCHEMA.replace("score: float[]", "score: float[2]"),
            r"output 1.score is float64\[\*\]; it must be float64\[\*, 2\]",
        ),
    ],
)
def test_a_network_that_is_not_what_the_record_says_is_refused_before_it_is_hosted(schema: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"layer ffn0: weighed.*{said}|layer ffn0: {said}"):
        build_checked(layer(schema=schema))


def test_a_network_that_returns_something_else_later_fails_that_request(monkeypatch: pytest.MonkeyPatch) -> None:
    expert = made(layer())
    monkeypatch.setattr(expert.module, "forward", lambda rows, weight, token: (rows[:1], {"score": weight}))
    (outcome,) = compute(expert, "forward", [inputs(3)])
    assert isinstance(outcome, ExpertFailed)
    assert "output 0 is float64[1, 4]; it must be float64[*, 4]" in outcome.message


def test_what_such_experts_take_of_memory_is_known_and_they_are_not_grouped() -> None:
    assert measure(layer(), 16).passing_bytes > 16 * layer().row_bytes
    project = ProjectRecord(id="digits", layers=(layer(),))
    hosted = HostedExperts.create([ExpertUid("ffn0", (cell,)) for cell in range(2)], project, CPU, "on")
    assert hosted.group_of("ffn0.0", "forward") is None
    assert len(hosted) == 2


@pytest.mark.parametrize("operation", ["forward", "gradient"])
def test_a_guilty_request_among_many_costs_the_others_few_computations(operation: Operation) -> None:
    expert = made(layer())
    draw = inputs if operation == "forward" else with_gradients
    requests = [draw(1, 7 if number == 20 else 0) for number in range(64)]
    batches = 0

    def count(*_: object) -> None:
        nonlocal batches
        batches += 1

    expert.module.register_forward_pre_hook(count)
    outcomes = compute(expert, operation, requests)

    failed = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, ExpertFailed)]
    assert failed == [20]
    assert batches <= 2 * 6 + 2
