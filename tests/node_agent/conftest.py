"""A caller that speaks to nodes over the real transport, and projects of alice's."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from learning_at_home.clock import SystemClock
from learning_at_home.identity import Identity
from learning_at_home.peer_address import PeerAddress
from learning_at_home.project import LayerSpec, OptimizerSpec, ProjectRecord
from learning_at_home.tensors.frames import from_frames, to_frames
from learning_at_home.transport.calls import Answer, Call
from learning_at_home.transport.connections import Connections
from learning_at_home.wire.messages import Operation

TIMEOUT_S = 20.0


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Caller:
    """Alice, a trainer: calls that wait for their answer."""

    def __init__(self) -> None:
        self.clock = SystemClock()
        self.connections = Connections(Identity.generate(), self.clock)

    def call(self, peer: PeerAddress, uid: str, operation: Operation, *tensors: Tensor) -> Tensor:
        """The answer's tensor. Raises what the node answered."""
        answer = self.ask(peer, [_call_of(uid, operation, *tensors)])[0]
        if answer.error is not None:
            raise answer.error
        assert answer.reply is not None
        return from_frames(answer.reply.tensors[0], answer.tensors[0])

    def ask(self, peer: PeerAddress, calls: list[Call]) -> list[Answer]:
        """The answers of several calls in one message, in the order of the calls."""
        deadline = self.clock.monotonic_s() + TIMEOUT_S
        with self.connections.exchange() as exchange:
            exchange.send(peer, "digits", calls, deadline)
            answers = {}
            while exchange.pending:
                answer = exchange.next_answer(deadline + 1.0)
                assert answer is not None, "no answer before the deadline"
                answers[answer.call_id] = answer
        return [answers[call.call_id] for call in calls]


def _call_of(uid: str, operation: Operation, *tensors: Tensor) -> Call:
    packed = [to_frames(tensor) for tensor in tensors]
    return Call(uid, operation, tuple(spec for spec, _ in packed), tuple(f for _, frames in packed for f in frames))


@pytest.fixture
def call_of() -> Callable[..., Call]:
    """`call_of(uid, operation, *tensors)`: a call ready to be sent."""
    return _call_of


@pytest.fixture
def new_caller() -> Iterator[Callable[[], Caller]]:
    """Makes callers, each with a key and connections of its own."""
    callers: list[Caller] = []

    def make() -> Caller:
        callers.append(Caller())
        return callers[-1]

    yield make
    for made in callers:
        made.connections.close()


@pytest.fixture
def caller(new_caller: Callable[[], Caller]) -> Caller:
    return new_caller()


@pytest.fixture
def project() -> ProjectRecord:
    """Two small layers in float64, so that results can be compared exactly."""
    sgd = OptimizerSpec(name="sgd", learning_rate=0.1)
    return ProjectRecord(
        id="digits",
        layers=(
            LayerSpec(prefix="ffn0", grid=(2, 2), hidden_size=8, dtype="float64"),
            LayerSpec(prefix="mlp0", grid=(2,), architecture="mlp", hidden_size=8, dtype="float64", optimizer=sgd),
        ),
    )
