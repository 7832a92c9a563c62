"""A node that is stopped or killed in the middle of a call: real processes, real signals, and how long it costs."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from learning_at_home.client.dmoe import DMoE
from learning_at_home.client.remote_expert import RemoteExpert
from learning_at_home.client.swarm import Swarm
from learning_at_home.errors import CallTimeout, LearningAtHomeError, PeerUnreachable
from node_agent.experts.architectures import build_expert
from tests.faults.process_node import ProcessSwarm, until_it_computes
from tests.learning_at_home.client.small_swarm import FROZEN, layer

ROWS, FEATURES = 4_096, 384  # most of a second of one core: no call ends between the look and the signal
PUNCTUAL_S = 0.05  # the promise, for the median of five: a single one may find the machine busy
LATE_S = 0.5
KILLED_S = 1.0
PATIENT_S = 40.0
# Each node hosts the cell of its number. One is stopped and goes on, one lives, three are killed, each by its own test.
STOPPED, SURVIVOR, KILLED_FORWARD, KILLED_BACKWARD, KILLED_IN_A_LAYER = range(5)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]  # five processes import torch


@pytest.fixture(scope="module")
def nodes(processes) -> ProcessSwarm:
    spec = layer((5,), hidden_size=FEATURES, dtype="float32", optimizer=FROZEN, deadline_s=PATIENT_S, grace_s=1.0)
    swarm: ProcessSwarm = processes(spec, 5)
    return swarm


@pytest.fixture(scope="module")
def swarm(nodes: ProcessSwarm) -> Iterator[Swarm]:
    """A trainer; all nodes live when it joins."""
    with nodes.connect() as connected:
        yield connected


@pytest.fixture
def stoppable(nodes: ProcessSwarm, swarm: Swarm) -> Iterator[RemoteExpert]:
    """The expert of the node that a test may stop; it goes on afterwards, and answers again."""
    expert = swarm.expert(uid(STOPPED))
    few = rows(3)
    before = expert(few)
    yield expert
    nodes.local.cont(STOPPED)
    torch.testing.assert_close(expert(few), before)


def uid(cell: int) -> str:
    return f"ffn0.{cell}"


def rows(number: int = ROWS) -> Tensor:
    return torch.randn(number, FEATURES)


@dataclass
class Calls:
    """Calls on threads of their own: what each brought."""

    outcomes: list[Tensor | LearningAtHomeError] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self, call: Callable[[], Tensor]) -> None:
        thread = threading.Thread(target=self._run, args=(call,))
        self._threads.append(thread)
        thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(2 * PATIENT_S)
            assert not thread.is_alive()

    def _run(self, call: Callable[[], Tensor]) -> None:
        try:
            self.outcomes.append(call())
        except LearningAtHomeError as error:
            self.outcomes.append(error)


class PreparedCall:
    """A call of one expert, forward or backward, that waits for `run`; a backward's forward has been done."""

    def __init__(self, swarm: Swarm, cell: int, operation: str, number: int) -> None:
        self.started = self.ended = 0.0
        self._expert = RemoteExpert(swarm, uid(cell))
        self._x = rows(number).requires_grad_()
        self._y = self._expert(self._x) if operation == "backward" else None

    def run(self, deadline_s: float) -> Tensor:
        self._expert.deadline_s = deadline_s
        self.started = time.monotonic()
        try:
            if self._y is None:
                y: Tensor = self._expert(self._x)
                return y
            self._y.backward(torch.ones_like(self._y))
            assert self._x.grad is not None
            return self._x.grad
        finally:
            self.ended = time.monotonic()


def layer_of(swarm: Swarm, *cells: int) -> DMoE:
    """A layer that sends every row to the experts of these cells."""
    dmoe = DMoE(swarm, "ffn0", len(cells))
    with torch.no_grad():
        dmoe.gate.lines.weight.zero_()
        dmoe.gate.lines.bias.zero_()
        for cell in cells:
            dmoe.gate.lines.bias[cell] = 10.0
    return dmoe


def check_it_is_the_survivors(nodes: ProcessSwarm, x: Tensor, y: Tensor | LearningAtHomeError) -> None:
    """Forward and backward are those of the one expert that is left."""
    assert isinstance(y, Tensor), y
    survivor = build_expert(nodes.spec, "test", list(nodes.spec.cells.uids("ffn0"))[SURVIVOR])
    x_local = x.detach().clone().requires_grad_()
    y_local = survivor(x_local)
    torch.testing.assert_close(y, y_local, rtol=1e-4, atol=1e-4)
    y.sum().backward()
    y_local.sum().backward()
    torch.testing.assert_close(x.grad, x_local.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("operation", ["forward", "backward"])
def test_calls_of_a_stopped_node_end_at_their_deadlines(nodes, swarm, stoppable, figure, operation):
    """The node computes the first of five calls when it is stopped; the others wait there."""
    deadlines_s = [1.5, 1.6, 1.7, 1.8, 1.9]
    prepared = [PreparedCall(swarm, STOPPED, operation, ROWS if number == 0 else 3) for number in range(5)]
    calls = Calls()

    calls.start(lambda: prepared[0].run(deadlines_s[0]))
    until_it_computes(nodes.process(STOPPED))
    nodes.local.stop(STOPPED)
    for one, deadline_s in zip(prepared[1:], deadlines_s[1:], strict=True):
        calls.start(lambda one=one, deadline_s=deadline_s: one.run(deadline_s))  # type: ignore[misc]
    calls.join()

    for outcome in calls.outcomes:
        assert isinstance(outcome, CallTimeout)
        assert uid(STOPPED) in outcome.message
        assert outcome.peer == f"node-{STOPPED}"
    over = [one.ended - one.started - deadline_s for one, deadline_s in zip(prepared, deadlines_s, strict=True)]
    figure("seconds over the deadline, median", statistics.median(over))
    figure("seconds over the deadline, worst", max(over))
    assert min(over) > -0.01
    assert statistics.median(over) < PUNCTUAL_S
    assert max(over) < LATE_S


@pytest.mark.usefixtures("stoppable")
def test_a_layer_loses_nothing_to_a_stopped_node(nodes, swarm, figure):
    x = rows().requires_grad_()
    dmoe = layer_of(swarm, STOPPED, SURVIVOR)
    calls = Calls()
    lost_before = swarm.stats().lost_contributions

    calls.start(lambda: dmoe(x))
    until_it_computes(nodes.process(STOPPED))
    nodes.local.stop(STOPPED)
    stopped = time.monotonic()
    calls.join()

    took_s = time.monotonic() - stopped
    figure("seconds from the signal to the answer, of which 1 is grace", took_s)
    assert took_s < PATIENT_S / 4
    check_it_is_the_survivors(nodes, x, calls.outcomes[0])
    assert swarm.stats().lost_contributions == lost_before


@pytest.mark.parametrize("operation, cell", [("forward", KILLED_FORWARD), ("backward", KILLED_BACKWARD)])
def test_a_call_of_a_killed_node_is_an_error_within_a_second(nodes, swarm, figure, operation, cell):
    one = PreparedCall(swarm, cell, operation, ROWS)
    calls = Calls()

    calls.start(lambda: one.run(PATIENT_S))
    until_it_computes(nodes.process(cell))
    killed = time.monotonic()
    nodes.local.kill(cell)
    calls.join()

    (outcome,) = calls.outcomes
    assert isinstance(outcome, PeerUnreachable)
    assert uid(cell) in outcome.message
    assert outcome.peer == f"node-{cell}"
    figure("seconds from the signal to the error", one.ended - killed)
    assert one.ended - killed < KILLED_S


def test_a_layer_loses_nothing_to_a_killed_node(nodes, swarm, figure):
    x = rows().requires_grad_()
    dmoe = layer_of(swarm, KILLED_IN_A_LAYER, SURVIVOR)
    calls = Calls()
    lost_before = swarm.stats().lost_contributions

    calls.start(lambda: dmoe(x))
    until_it_computes(nodes.process(KILLED_IN_A_LAYER))
    nodes.local.kill(KILLED_IN_A_LAYER)
    calls.join()

    check_it_is_the_survivors(nodes, x, calls.outcomes[0])
    assert swarm.stats().lost_contributions == lost_before
