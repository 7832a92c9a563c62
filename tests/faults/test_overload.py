"""A full node says so at once; callers come back or go elsewhere; work that is too late is never computed.

The expert is held in its first computation, and the queue filled over the wire until the node refuses.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from learning_at_home.client.dmoe import DMoE
from learning_at_home.errors import DeadlinePassed, NodeOverloaded
from learning_at_home.wire.messages import Failure, Operation, Reply
from node_agent.runtime.host import Host
from tests.faults.gate import TIMEOUT_S, Gate, until
from tests.faults.raw_caller import RawCaller, request, tensor_of
from tests.learning_at_home.client.small_swarm import FROZEN, SmallSwarm, layer

MOST_ROWS = 4_096
MOST_REQUESTS = 200  # of the largest kind; every bound of a node is far below
AT_ONCE_S = 0.5  # on a busy machine; the figure is shown
UID = "ffn0.0"

pytestmark = pytest.mark.slow


def rows(number: int = 3) -> Tensor:
    return torch.randn(number, 6, dtype=torch.float64)


class Busy:
    """A node whose one expert computes until the gate is opened, and a caller beside the one that is tested."""

    def __init__(self, swarm: SmallSwarm, raw_caller: Callable[..., RawCaller]) -> None:
        self.swarm = swarm
        self.host: Host = swarm.add_host([0])
        self.expert = self.host.experts.find(UID)
        self.gate = Gate(self.expert.module)
        endpoint = f"tcp://127.0.0.1:{self.host.server.port}"
        self.caller = raw_caller(swarm.identities[0].public_key, endpoint).greet()
        self.call_ids: list[int] = []  # what was taken in
        self.caller.send(request("test", UID, "forward", rows(), call_id=1))
        self.call_ids.append(1)
        assert self.gate.entered.wait(TIMEOUT_S)

    def fill(self, timeout_ms: int = 60_000) -> tuple[Failure, float]:
        """Send work until some is refused: the refusal, and how long it took."""
        x = rows(MOST_ROWS)
        for call_id in range(1_000, 1_000 + MOST_REQUESTS):
            started = time.monotonic()
            self.caller.send(request("test", UID, "forward", x, call_id=call_id, timeout_ms=timeout_ms))
            self.caller.send(request("test", "ffn0.9", "forward", rows(1), call_id=2))
            message, _ = self.caller.receive()
            took_s = time.monotonic() - started
            assert isinstance(message, Failure)
            if message.call_id == call_id:
                self.caller.answer_to(2)
                return message, took_s
            self.call_ids.append(call_id)
        raise AssertionError(f"{MOST_REQUESTS * MOST_ROWS} rows wait, and the node still takes more")


@pytest.fixture
def busy(small_swarm, raw_caller) -> Iterator[Busy]:
    node = Busy(small_swarm(layer((3,), optimizer=FROZEN, deadline_s=10.0)), raw_caller)
    yield node
    node.gate.remove()
    assert node.host.failure() is None


def test_a_full_node_refuses_at_once_with_a_hint_and_keeps_what_it_took(busy, figure):
    refusal, took_s = busy.fill()

    assert refusal.code == NodeOverloaded.code
    assert refusal.retry_after_ms is not None
    assert refusal.retry_after_ms > 0
    figure("seconds until the refusal", took_s)
    figure("rows that waited", (len(busy.call_ids) - 1) * MOST_ROWS)
    assert took_s < AT_ONCE_S
    assert busy.host.refused > 0
    assert len(busy.gate.batches) == 1, "nothing was computed meanwhile"
    busy.gate.open()
    answered = set()
    for _ in busy.call_ids:
        message, _ = busy.caller.receive()
        assert isinstance(message, Reply), message
        answered.add(message.call_id)
    assert answered == set(busy.call_ids)


def test_a_remote_expert_backs_off_and_has_its_answer(busy, figure):
    busy.fill()
    refused_before = busy.host.refused
    x = rows()
    answers: list[Tensor] = []
    calling = threading.Thread(target=lambda: answers.append(busy.swarm.swarm.expert(UID)(x)))
    calling.start()
    until(lambda: busy.host.refused > refused_before, "the call was refused")

    busy.gate.open()
    calling.join(TIMEOUT_S)

    assert len(answers) == 1
    torch.testing.assert_close(answers[0], busy.swarm.local(0)(x))
    figure("times that it was refused", busy.host.refused - refused_before)
    stats = busy.swarm.swarm.stats()
    assert stats.calls == 1 + stats.failures


def test_a_layer_takes_the_next_best_expert_at_once(busy, figure):
    bob = busy.swarm.add_host([1, 2])
    busy.fill()
    dmoe = DMoE(busy.swarm.swarm, "ffn0", 1)
    with torch.no_grad():
        dmoe.gate.lines.weight.zero_()
        dmoe.gate.lines.bias.copy_(torch.tensor([3.0, 2.0, 1.0]))
    x = rows()
    started = time.monotonic()

    y = dmoe(x)

    took_s = time.monotonic() - started
    figure("seconds", took_s)
    assert took_s < AT_ONCE_S
    torch.testing.assert_close(y, busy.swarm.local(1)(x))
    assert not busy.gate.has_seen(x)
    assert bob.refused == 0


@pytest.mark.parametrize("operation", ["forward", "backward"])
def test_work_past_its_deadline_is_dropped_before_it_is_computed_and_counted(busy, operation: Operation):
    x = rows()
    tensors = (x, rows()) if operation == "backward" else (x,)
    refused_before = busy.host.refused
    late = request("test", UID, operation, *tensors, call_id=7, timeout_ms=50)
    busy.caller.send(late)
    busy.caller.send(request("test", "ffn0.9", "forward", rows(1), call_id=2))
    busy.caller.answer_to(2)
    threading.Event().wait(0.06)  # nothing happens when a deadline passes in a queue

    busy.gate.open()

    message, _ = busy.caller.answer_to(7)
    assert isinstance(message, Failure)
    assert message.code == DeadlinePassed.code
    assert UID in message.message
    assert not busy.gate.has_seen(x)
    assert busy.host.refused == refused_before + 2, "the late one and the unknown one"
    assert busy.expert.updates == 0


def test_late_work_makes_room_for_what_can_still_be_answered(busy):
    busy.fill(timeout_ms=300)
    threading.Event().wait(0.31)  # nothing happens when a deadline passes in a queue
    x = rows()

    busy.caller.send(request("test", UID, "forward", x, call_id=7))
    busy.caller.send(request("test", "ffn0.9", "forward", rows(1), call_id=2))
    busy.caller.answer_to(2)
    busy.gate.open()

    message, frames = busy.caller.answer_to(7)
    assert isinstance(message, Reply), message
    torch.testing.assert_close(tensor_of(message.tensors[0], frames), busy.swarm.local(0)(x))
