"""Twenty-four callers at one expert in one moment, one of them wrong: the others have their answers, exactly.

An honest caller's request holds the expert until all the others wait; so what can be computed together is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from learning_at_home.errors import (
    BatchTooLarge,
    EmptyBatch,
    ExpertFailed,
    LearningAtHomeError,
    NonFiniteTensor,
    SpecMismatch,
    UnknownExpert,
    WireError,
)
from learning_at_home.wire.messages import Failure, Operation, Reply
from node_agent.runtime.host import Host
from tests.faults.gate import POISON, TIMEOUT_S, Gate
from tests.faults.raw_caller import RawCaller, request, tensor_of
from tests.learning_at_home.client.small_swarm import SGD, SmallSwarm, layer

NUM_CALLERS = 24
GUILTY = 13
UID = "ffn0.0"
HUGE = 1e308  # finite, but no network's output of it is


def rows(number: int = 2, features: int = 6) -> Tensor:
    return torch.randn(number, features, dtype=torch.float64)


def spoilt(value: float) -> Tensor:
    tensor = rows()
    tensor[1, 0] = value
    return tensor


def cut(parts: list[bytes]) -> list[bytes]:
    return [*parts[:-1], parts[-1][:-1]]


def backward_or_forward(operation: Operation, tensor: Tensor) -> list[bytes]:
    gradients = (torch.ones_like(tensor),) if operation == "backward" else ()
    return request("test", UID, operation, tensor, *gradients)


# Name -> what the guilty caller sends for an operation, and what it is told.
CRIMES = {
    "garbage": (lambda op: [b"\xff\x00garbage", bytes(96)], WireError),
    "a frame cut short": (lambda op: cut(backward_or_forward(op, rows())), WireError),
    "a frame too many": (lambda op: [*backward_or_forward(op, rows()), bytes(96)], WireError),
    "other features": (lambda op: backward_or_forward(op, rows(2, 5)), SpecMismatch),
    "another dtype": (lambda op: backward_or_forward(op, rows().float()), SpecMismatch),
    "more dimensions": (lambda op: backward_or_forward(op, rows()[None]), SpecMismatch),
    "a tensor too many": (lambda op: request("test", UID, op, rows(), rows(), rows()), SpecMismatch),
    "no rows": (lambda op: backward_or_forward(op, rows(0)), EmptyBatch),
    "too many rows": (lambda op: backward_or_forward(op, rows(4_097)), BatchTooLarge),
    "NaN": (lambda op: backward_or_forward(op, spoilt(math.nan)), NonFiniteTensor),
    "infinity": (lambda op: backward_or_forward(op, spoilt(math.inf)), NonFiniteTensor),
    "numbers that overflow in the batch": (lambda op: backward_or_forward(op, spoilt(HUGE)), ExpertFailed),
    "rows that make the expert raise": (lambda op: backward_or_forward(op, spoilt(POISON)), ExpertFailed),
}


class Crowd:
    """Callers that all wait at one expert, and then have their answers."""

    def __init__(self, swarm: SmallSwarm, callers: list[RawCaller]) -> None:
        self.swarm = swarm
        self.callers = callers
        self.host = swarm.nodes[0]
        assert isinstance(self.host, Host)
        self.module = self.host.experts.find(UID).module
        self.gate = Gate(self.module)

    def ask(self, messages: list[list[bytes]]) -> list[tuple[Reply | Failure, list[bytes]]]:
        """Each caller's answer to its message: the first one's is computed while the others' arrive and wait."""
        answers: list[tuple[Reply | Failure, list[bytes]]] = []
        self.callers[0].send(messages[0])
        assert self.gate.entered.wait(TIMEOUT_S)
        for caller, message in zip(self.callers[1:], messages[1:], strict=True):
            caller.send(message)
            caller.send(request("test", "ffn0.9", "forward", rows(), call_id=2))
        early = [_until_the_sentinel(caller) for caller in self.callers[1:]]
        self.gate.open()
        for caller, found in zip(self.callers, [None, *early], strict=True):
            answer, frames = found or caller.receive()
            assert isinstance(answer, Reply | Failure)
            answers.append((answer, frames))
        return answers


def _until_the_sentinel(caller: RawCaller) -> tuple[Reply | Failure, list[bytes]] | None:
    """What came before the refusal that tells that the message before it was taken in."""
    early = None
    while True:
        message, frames = caller.receive()
        assert isinstance(message, Reply | Failure)
        if message.call_id == 2:
            assert isinstance(message, Failure)
            assert message.code == UnknownExpert.code
            return early
        early = message, frames


@pytest.fixture
def crowd(small_swarm, raw_caller) -> Iterator[Crowd]:
    swarm = small_swarm(layer((1,)))
    host = swarm.add_host([0])
    endpoint = f"tcp://127.0.0.1:{host.server.port}"
    crowd = Crowd(swarm, [raw_caller(swarm.identities[0].public_key, endpoint).greet() for _ in range(NUM_CALLERS)])
    yield crowd
    crowd.gate.remove()
    assert host.failure() is None


@pytest.mark.slow
@pytest.mark.parametrize("crime, error", CRIMES.values(), ids=CRIMES.keys())
def test_of_24_callers_one_is_wrong_and_23_have_their_answers(crowd, crime, error):
    inputs = [rows(1 + number % 4) for number in range(NUM_CALLERS)]
    messages = [request("test", UID, "forward", x) for x in inputs]
    messages[GUILTY] = crime("forward")

    answers = crowd.ask(messages)

    check_the_guilty(answers.pop(GUILTY)[0], error)
    inputs.pop(GUILTY)
    for x, (reply, frames) in zip(inputs, answers, strict=True):
        assert isinstance(reply, Reply), reply
        torch.testing.assert_close(tensor_of(reply.tensors[0], frames), crowd.swarm.local(0)(x).detach())
    together = max(len(batch) for batch in crowd.gate.batches)
    assert together >= sum(map(len, inputs[1:])), "all that waited make one batch"


@pytest.mark.slow
@pytest.mark.parametrize("crime, error", CRIMES.values(), ids=CRIMES.keys())
def test_of_24_backwards_one_is_wrong_and_23_are_applied(crowd, crime, error):
    """The first alone, since the expert was free; then the other 22 as one step."""
    inputs = [rows(1 + number % 4) for number in range(NUM_CALLERS)]
    heads = [torch.randn_like(x) for x in inputs]
    messages = [request("test", UID, "backward", x, head) for x, head in zip(inputs, heads, strict=True)]
    messages[GUILTY] = crime("backward")

    answers = crowd.ask(messages)

    check_the_guilty(answers.pop(GUILTY)[0], error)
    inputs.pop(GUILTY)
    heads.pop(GUILTY)
    local = crowd.swarm.local(0)
    optimizer = torch.optim.SGD(local.parameters(), lr=SGD.learning_rate)
    gradients = []
    for step in (slice(0, 1), slice(1, None)):
        optimizer.zero_grad()
        for x, head in zip(inputs[step], heads[step], strict=True):
            x_local = x.clone().requires_grad_()
            local(x_local).backward(head)
            assert x_local.grad is not None
            gradients.append(x_local.grad)
        optimizer.step()
    for gradient, (reply, frames) in zip(gradients, answers, strict=True):
        assert isinstance(reply, Reply), reply
        torch.testing.assert_close(tensor_of(reply.tensors[0], frames), gradient)
    expert = crowd.host.experts.find(UID)
    assert expert.updates == 2
    for hosted, expected in zip(expert.module.parameters(), local.parameters(), strict=True):
        torch.testing.assert_close(hosted, expected)


def check_the_guilty(answer: Reply | Failure, error: type[LearningAtHomeError]) -> None:
    assert isinstance(answer, Failure)
    assert answer.code == error.code, answer
    if answer.call_id is not None:
        assert UID in answer.message
