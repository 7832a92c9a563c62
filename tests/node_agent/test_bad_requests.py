"""Bad input against a real node over the real transport: a typed error each, and nothing changes."""

import math
import threading
from collections.abc import Iterator

import pytest
import torch
import zmq

from learning_at_home.errors import (
    BatchTooLarge,
    EmptyBatch,
    LearningAtHomeError,
    NonFiniteTensor,
    SpecMismatch,
    UnknownExpert,
    UnknownProject,
    WireError,
)
from learning_at_home.identity import Identity
from learning_at_home.project import LayerSpec, ProjectRecord
from learning_at_home.transport.socket_options import secure_caller
from learning_at_home.wire.framing import decode_node, encode
from learning_at_home.wire.messages import PROTOCOL_VERSIONS, Failure, Greeting, Request, TensorSpec, Welcome, Work
from node_agent.testing import LocalSwarm

UID = "ffn0.0.1"
TIMEOUT_MS = 10_000
PROJECT = ProjectRecord(id="digits", layers=(LayerSpec(prefix="ffn0", grid=(2, 2), hidden_size=8, dtype="float64"),))


def rows(number: int = 3, size: int = 8, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(number, size, dtype=dtype)


def spoilt(value: float) -> torch.Tensor:
    tensor = rows()
    tensor[1, 2] = value
    return tensor


@pytest.fixture(scope="module")
def swarm() -> Iterator[LocalSwarm]:
    with LocalSwarm(PROJECT, num_nodes=1, in_process=True) as swarm:
        yield swarm


@pytest.fixture
def unharmed(swarm, caller):
    """After the test the expert is what it was, bit for bit, and answers the next good call."""
    expert = swarm.expert(UID)
    before = [parameter.detach().clone() for parameter in expert.module.parameters()]
    updates = expert.updates
    yield
    assert all(map(torch.equal, before, expert.module.parameters()))
    assert expert.updates == updates
    x = rows()
    torch.testing.assert_close(caller.call(swarm.address(0), UID, "forward", x), expert.module(x).detach())


BAD_CALLS = {
    "unknown uid": ("ffn0.7.7", "forward", [rows()], UnknownExpert, "'ffn0.7.7' is not hosted by this node"),
    "no uid at all": ("'; drop table", "forward", [rows()], UnknownExpert, "is not hosted"),
    "wrong features": (UID, "forward", [rows(3, 7)], SpecMismatch, r"ffn0\.0\.1: .*float64\[3, 7\].*float64\[\*, 8\]"),
    "too many dimensions": (UID, "forward", [rows()[None]], SpecMismatch, r"float64\[1, 3, 8\].*float64\[\*, 8\]"),
    "no dimension": (UID, "forward", [torch.tensor(1.0, dtype=torch.float64)], SpecMismatch, r"float64\[\].*takes"),
    "wrong dtype": (UID, "forward", [rows(dtype=torch.float32)], SpecMismatch, r"float32\[3, 8\].*takes float64"),
    "no tensor": (UID, "forward", [], SpecMismatch, r"forward takes 1 tensor\(s\).*0 came"),
    "a tensor too many": (UID, "forward", [rows(), rows()], SpecMismatch, "2 came"),
    "no gradient": (UID, "backward", [rows()], SpecMismatch, r"backward takes 2 tensor\(s\).*1 came"),
    "gradient of other rows": (UID, "backward", [rows(3), rows(2)], SpecMismatch, "differ in their rows"),
    "gradient of other features": (UID, "backward", [rows(), rows(3, 7)], SpecMismatch, "gradient of the outputs"),
    "empty batch": (UID, "forward", [rows(0)], EmptyBatch, "ffn0.0.1: a batch of no rows"),
    "empty backward": (UID, "backward", [rows(0), rows(0)], EmptyBatch, "ffn0.0.1: a batch of no rows"),
    "over the limit": (UID, "forward", [torch.zeros(4097, 8, dtype=torch.float64)], BatchTooLarge, "4,097.*4,096"),
    "NaN input": (UID, "forward", [spoilt(math.nan)], NonFiniteTensor, "ffn0.0.1: the inputs hold NaN"),
    "infinite input": (UID, "backward", [spoilt(math.inf), rows()], NonFiniteTensor, "the inputs hold"),
    "NaN gradient": (UID, "backward", [rows(), spoilt(math.nan)], NonFiniteTensor, "gradient of the outputs hold"),
    "infinite gradient": (UID, "backward", [rows(), spoilt(-math.inf)], NonFiniteTensor, "the expert takes finite"),
}


@pytest.mark.parametrize("uid,operation,tensors,error,words", BAD_CALLS.values(), ids=BAD_CALLS.keys())
@pytest.mark.usefixtures("unharmed")
def test_a_bad_call_is_refused_with_what_was_expected(swarm, caller, uid, operation, tensors, error, words):
    with pytest.raises(error, match=words) as refusal:
        caller.call(swarm.address(0), uid, operation, *tensors)

    assert type(refusal.value) is error
    assert refusal.value.peer == "node-0"


class RawCaller:
    """Mallory: an authenticated connection, and any bytes over it."""

    def __init__(self, swarm: LocalSwarm) -> None:
        self.identity = Identity.generate()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
        address = swarm.address(0)
        secure_caller(self._socket, self.identity, address.public_key)
        self._socket.connect(address.endpoints[0])

    def exchange(self, *parts: bytes) -> Welcome | Failure:
        self._socket.send_multipart(parts)
        message = decode_node(self._socket.recv_multipart()[0])
        assert isinstance(message, Welcome | Failure)
        return message

    def greet(self) -> None:
        greeting = Greeting(PROTOCOL_VERSIONS, self.identity.public_key, "mallory/1")
        assert isinstance(self.exchange(encode(greeting)), Welcome)

    def close(self) -> None:
        self._socket.close()
        self._context.term()


@pytest.fixture
def mallory(swarm) -> Iterator[RawCaller]:
    raw = RawCaller(swarm)
    yield raw
    raw.close()


def header(*specs: TensorSpec, operation="forward", project="digits") -> bytes:
    issued_ms = 1 << 45  # far in the future: never late
    return encode(Request(project, issued_ms, 60_000, (Work(1, UID, operation, specs),)))


SPEC = TensorSpec("float64", (3, 8))
FRAME = bytes(SPEC.num_bytes)
BAD_BYTES = {
    "garbage header": ([b"\xff\x00garbage"], WireError),
    "empty header": ([b""], WireError),
    "a number for a header": ([b"\x01"], WireError),
    "huge header": ([b"\x00" * 300_000], WireError),
    "truncated frame": ([header(SPEC), FRAME[:-1]], WireError),
    "frame too long": ([header(SPEC), FRAME + b"\0"], WireError),
    "missing frame": ([header(SPEC)], WireError),
    "a frame too many": ([header(SPEC), FRAME, FRAME], WireError),
    "announces terabytes": ([header(TensorSpec("float64", (1 << 39, 8))), FRAME], WireError),
    "announces an overflow": ([header(TensorSpec("float64", (1 << 40,) * 8)), FRAME], WireError),
    "a negative size": ([header(TensorSpec("float64", (-3, 8))), FRAME], WireError),
    "another project": ([header(SPEC, project="letters"), FRAME], UnknownProject),
}


@pytest.mark.parametrize("parts,error", BAD_BYTES.values(), ids=BAD_BYTES.keys())
@pytest.mark.usefixtures("unharmed")
def test_bytes_that_break_the_format_are_refused(mallory, parts, error):
    mallory.greet()

    answer = mallory.exchange(*parts)

    assert isinstance(answer, Failure)
    assert answer.code == error.code


@pytest.mark.usefixtures("unharmed")
def test_a_header_cut_anywhere_is_refused(mallory):
    mallory.greet()
    whole = header(SPEC)

    for length in range(len(whole)):
        answer = mallory.exchange(whole[:length], FRAME)
        assert isinstance(answer, Failure)
        assert answer.code == WireError.code


def test_one_callers_bad_requests_fail_none_of_those_beside_them(swarm, new_caller):
    """Sixteen callers at once on one expert; every second one sends NaN or a wrong shape."""
    expert = swarm.expert(UID)
    start = threading.Barrier(16)
    outcomes: dict[int, list[object]] = {}
    inputs = {number: rows(2) for number in range(0, 16, 2)}

    def call(number: int) -> None:
        caller = new_caller()
        bad = spoilt(math.nan) if number % 4 == 1 else rows(2, 5)
        start.wait()
        outcomes[number] = []
        for _ in range(10):
            try:
                outcomes[number].append(caller.call(swarm.address(0), UID, "forward", inputs.get(number, bad)))
            except LearningAtHomeError as error:
                outcomes[number].append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for number, found in outcomes.items():
        assert len(found) == 10
        for outcome in found:
            if number % 2:
                assert isinstance(outcome, NonFiniteTensor if number % 4 == 1 else SpecMismatch)
            else:
                assert isinstance(outcome, torch.Tensor)
                torch.testing.assert_close(outcome, expert.module(inputs[number]).detach())


def test_a_message_with_work_for_many_experts_fails_only_where_it_is_bad(swarm, caller, call_of):
    x = rows()
    calls = [
        call_of("ffn0.0.0", "forward", x),
        call_of("ffn0.9.9", "forward", x),
        call_of("ffn0.1.0", "forward", rows(3, 5)),
        call_of("ffn0.1.1", "forward", x),
    ]

    answers = caller.ask(swarm.address(0), calls)

    assert [type(answer.error) for answer in answers] == [type(None), UnknownExpert, SpecMismatch, type(None)]


def test_a_good_backward_steps_once_and_returns_the_gradient(swarm, caller):
    expert = swarm.expert("ffn0.1.0")
    updates = expert.updates
    x, output_gradient = rows(), rows()
    local_x = x.clone().requires_grad_()
    expert.module(local_x).backward(output_gradient)

    gradient = caller.call(swarm.address(0), "ffn0.1.0", "backward", x, output_gradient)

    torch.testing.assert_close(gradient, local_x.grad)
    assert expert.updates == updates + 1
