"""A backward whose connection is cut is applied once, whenever it is cut, and its caller has the gradient.

The cut is made by a proxy between caller and node: in the request, after it, in the answer, once or again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from learning_at_home.client.dmoe import DMoE
from learning_at_home.errors import PeerUnreachable, StaleRequest
from learning_at_home.identity import Identity
from learning_at_home.wire.messages import Failure, Reply
from node_agent.runtime.host import Host
from tests.faults.gate import TIMEOUT_S, Gate
from tests.faults.raw_caller import request, tensor_of
from tests.faults.tcp_proxy import TcpProxy
from tests.learning_at_home.client.small_swarm import SGD, SmallSwarm, layer

ROWS = 200
REQUEST_BYTES = 2 * ROWS * 6 * 8  # a backward's tensors; twice its answer
HANDSHAKE_BYTES = 3_000  # more than greeting and welcome take, far less than an answer
UID = "ffn0.0"

pytestmark = pytest.mark.slow


def rows(number: int = ROWS) -> Tensor:
    return torch.randn(number, 6, dtype=torch.float64)


class Wire:
    """A swarm of one expert whose host is reached through a proxy alone, and the same expert here."""

    def __init__(self, swarm: SmallSwarm) -> None:
        self.swarm = swarm
        self.host: Host = swarm.add_host([0])
        self.proxy = TcpProxy(self.host.server.port)
        swarm.announce(swarm.identities[0], self.proxy.port, [0])
        self.expert = swarm.swarm.expert(UID)
        self.hosted = self.host.experts.find(UID)
        self.local = swarm.local(0)
        self.x = rows().requires_grad_()
        self.head = rows()
        self.x_local = self.x.detach().clone().requires_grad_()
        optimizer = torch.optim.SGD(self.local.parameters(), lr=SGD.learning_rate)
        self.y_local = self.local(self.x_local)
        self.y_local.backward(self.head)
        optimizer.step()

    def check_one_step(self) -> None:
        assert self.hosted.updates == 1
        for hosted, expected in zip(self.hosted.module.parameters(), self.local.parameters(), strict=True):
            torch.testing.assert_close(hosted, expected)

    def check_gradient(self) -> None:
        torch.testing.assert_close(self.x.grad, self.x_local.grad)


@pytest.fixture
def wire(small_swarm: Callable[..., SmallSwarm]) -> Iterator[Wire]:
    made = Wire(small_swarm(layer((1,), deadline_s=10.0)))
    with made.proxy:
        yield made
    assert made.host.failure() is None


CUTS = {
    "before any of the request": ("to the node", 0),
    "within the request": ("to the node", REQUEST_BYTES // 2),
    "before the answer": ("to the caller", 0),
    "within the answer": ("to the caller", HANDSHAKE_BYTES),
}


@pytest.mark.parametrize("direction, after_bytes", CUTS.values(), ids=CUTS.keys())
def test_a_backward_whose_connection_is_cut_is_applied_once(wire, figure, direction, after_bytes):
    y = wire.expert(wire.x)
    torch.testing.assert_close(y, wire.y_local)
    started = time.monotonic()

    wire.proxy.cut_later(direction, after_bytes)
    y.backward(wire.head)

    figure("seconds", time.monotonic() - started)
    assert wire.proxy.cuts == 1
    assert wire.proxy.num_connections == 2
    wire.check_gradient()
    wire.check_one_step()
    stats = wire.swarm.swarm.stats()
    assert (stats.failures, stats.retries) == (0, 1)


def test_a_backward_that_is_cut_is_gathered_once_and_stepped_by_when_the_host_leaves(small_swarm):
    optimizer = replace(SGD, update_rows=10 * ROWS)
    wire = Wire(small_swarm(layer((1,), deadline_s=10.0, optimizer=optimizer)))
    with wire.proxy:
        y = wire.expert(wire.x)
        wire.proxy.cut_later("to the caller", HANDSHAKE_BYTES)
        y.backward(wire.head)

        wire.check_gradient()
        assert wire.proxy.cuts == 1
        assert (wire.hosted.updates, wire.hosted.gathered.rows) == (0, ROWS)
        assert wire.host.drain(TIMEOUT_S)
        wire.check_one_step()


def test_a_backward_that_is_cut_while_it_is_computed_is_applied_once(wire):
    y = wire.expert(wire.x)
    gate = Gate(wire.hosted.module)
    calling = threading.Thread(target=lambda: y.backward(wire.head))
    calling.start()
    assert gate.entered.wait(TIMEOUT_S)

    wire.proxy.cut()
    while wire.proxy.num_connections < 2:
        time.sleep(0.002)  # the caller's thread wakes nobody
    gate.open()
    calling.join(TIMEOUT_S)

    wire.check_gradient()
    wire.check_one_step()
    gate.remove()


@pytest.mark.parametrize("times", [2, 3, 10])
def test_a_wire_that_is_cut_again_and_again_never_applies_a_backward_twice(wire, times):
    """It is sent again as long as there is time, or given up: never a second step."""
    y = wire.expert(wire.x)

    wire.proxy.cut_later("to the caller", HANDSHAKE_BYTES, times)
    try:
        y.backward(wire.head)
    except PeerUnreachable:
        pass
    else:
        wire.check_gradient()

    assert wire.proxy.cuts >= 2
    wire.check_one_step()


def test_a_forward_whose_connection_is_cut_is_asked_again(wire):
    wire.proxy.cut_later("to the caller", HANDSHAKE_BYTES)

    torch.testing.assert_close(wire.expert(wire.x), wire.y_local)

    assert wire.proxy.cuts == 1


def test_a_layers_backward_whose_connection_is_cut_is_applied_once(wire):
    y = DMoE(wire.swarm.swarm, "ffn0", 1)(wire.x)
    torch.testing.assert_close(y, wire.y_local)

    wire.proxy.cut_later("to the caller", HANDSHAKE_BYTES)
    y.backward(wire.head)

    assert wire.proxy.cuts == 1
    wire.check_gradient()
    wire.check_one_step()
    stats = wire.swarm.swarm.stats()
    assert (stats.lost_contributions, stats.zero_gradient_rows) == (0, 0)


def test_a_hundred_backwards_over_a_bad_wire_are_applied_once_each(wire, seed, figure):
    """Every few calls the wire is cut, anywhere. What the caller was told failed may count as well, but only once."""
    generator = random.Random(seed)
    failed = 0
    for _ in range(100):
        x = rows(20).requires_grad_()
        y = wire.expert(x)
        if generator.random() < 0.5:
            direction = generator.choice(("to the node", "to the caller"))
            wire.proxy.cut_later(direction, generator.randrange(2 * 20 * 6 * 8))
        try:
            y.backward(1e-3 * torch.randn_like(y))
        except PeerUnreachable:
            failed += 1

    assert wire.host.drain(TIMEOUT_S)
    figure("cuts", wire.proxy.cuts)
    figure("failed", failed)
    assert wire.proxy.cuts > 20
    assert 100 - failed <= wire.hosted.updates <= 100


def test_the_same_id_has_the_same_answer_to_the_byte(wire, raw_caller):
    """Sent again over another connection of the same key, and over the same one."""
    identity = Identity.generate()
    key = wire.swarm.identities[0].public_key
    endpoint = f"tcp://127.0.0.1:{wire.host.server.port}"
    issued_ms = round(time.time() * 1000)
    x, head = wire.x.detach(), wire.head
    first = raw_caller(key, endpoint, identity=identity).greet()
    first.send(request("test", UID, "backward", x, head, call_id=5, issued_ms=issued_ms))
    answer, frames = first.answer_to(5)
    assert isinstance(answer, Reply)
    again = request("test", UID, "backward", x, head, call_id=5, issued_ms=issued_ms, waited_ms=100)

    for caller in (raw_caller(key, endpoint, identity=identity).greet(), first):
        caller.send(again)
        repeated, same_frames = caller.answer_to(5)
        assert isinstance(repeated, Reply)
        assert same_frames == frames

    torch.testing.assert_close(tensor_of(answer.tensors[0], frames), wire.x_local.grad)
    wire.check_one_step()


def test_anothers_key_with_the_same_numbers_is_another_backward(wire, raw_caller):
    key = wire.swarm.identities[0].public_key
    endpoint = f"tcp://127.0.0.1:{wire.host.server.port}"
    issued_ms = round(time.time() * 1000)
    for _ in range(3):
        caller = raw_caller(key, endpoint).greet()
        caller.send(request("test", UID, "backward", wire.x.detach(), wire.head, call_id=5, issued_ms=issued_ms))
        assert isinstance(caller.answer_to(5)[0], Reply)

    assert wire.hosted.updates == 3


@pytest.mark.parametrize("age_s", [60, 3_600, 1 << 30])
def test_one_that_is_older_than_the_node_is_refused_and_not_applied(wire, raw_caller, age_s):
    """It may have been applied by the process that was this node before."""
    caller = raw_caller(wire.swarm.identities[0].public_key, f"tcp://127.0.0.1:{wire.host.server.port}").greet()
    waited_ms = age_s * 1_000
    issued_ms = round(time.time() * 1000) - waited_ms
    caller.send(request("test", UID, "backward", wire.x.detach(), wire.head, issued_ms=issued_ms, waited_ms=waited_ms))

    answer, _ = caller.answer_to(1)

    assert isinstance(answer, Failure)
    assert answer.code == StaleRequest.code
    assert wire.hosted.updates == 0
