"""Whose turn it is among the threads of a process that call."""

import threading
import time
from collections.abc import Iterator

import pytest

from learning_at_home.clock import SystemClock
from learning_at_home.identity import Identity
from learning_at_home.transport import turns
from learning_at_home.transport.connections import Connections
from learning_at_home.transport.turns import Turns

TIMEOUT_S = 10.0


@pytest.fixture
def connections() -> Iterator[Connections]:
    connections = Connections(Identity.generate(), SystemClock())
    connections.turns = Turns(1)
    yield connections
    connections.close()


class Caller:
    """A thread that begins a round, and tells."""

    def __init__(self, connections: Connections) -> None:
        self.has_turn, self.may_end = threading.Event(), threading.Event()
        self._connections = connections
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._connections.exchange():
            self.has_turn.set()
            assert self.may_end.wait(TIMEOUT_S)

    def end(self) -> None:
        self.may_end.set()
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()


def waiting_caller(connections: Connections) -> Caller:
    """The second of the process, which has to wait for its turn."""
    caller = Caller(connections)
    deadline = time.monotonic() + TIMEOUT_S
    while connections.num_leased < 2:
        assert time.monotonic() < deadline
    assert not caller.has_turn.is_set()
    return caller


def test_a_round_begins_when_the_other_thread_has_ended_its_own(connections: Connections):
    with connections.exchange():
        other = waiting_caller(connections)

    assert other.has_turn.wait(TIMEOUT_S)
    other.end()


def test_who_waits_lets_others_go_on_and_has_the_turn_again_after_it(connections: Connections):
    with connections.exchange() as exchange:
        with exchange.aside:
            other = Caller(connections)
            assert other.has_turn.wait(TIMEOUT_S)
            other.end()
        third = waiting_caller(connections)
    third.end()


def test_an_error_gives_the_turn_back(connections: Connections):
    with pytest.raises(RuntimeError, match="of the round"), connections.exchange():
        raise RuntimeError("of the round")
    with connections.exchange() as exchange, pytest.raises(RuntimeError, match="of the wait"), exchange.aside:
        raise RuntimeError("of the wait")

    Caller(connections).end()


def test_who_leases_without_a_context_needs_no_turn(connections: Connections):
    """As a loop does that never waits for an answer, and a lone call."""
    with connections.exchange():
        exchange = connections.exchange()
        with exchange.aside:
            exchange.give_back()

    Caller(connections).end()


def test_a_round_within_a_round_has_the_turn_of_its_thread(connections: Connections):
    with connections.exchange():
        with connections.exchange() as inner, inner.aside:
            other = Caller(connections)
            assert other.has_turn.wait(TIMEOUT_S)
            other.end()
        third = waiting_caller(connections)
    third.end()


def test_nobody_waits_for_a_turn_for_ever(connections: Connections, monkeypatch: pytest.MonkeyPatch):
    """As for one that got lost by an interrupt, or whose thread waits for this one."""
    monkeypatch.setattr(turns, "PATIENCE_S", 0.01)
    with connections.exchange():
        impatient = Caller(connections)
        assert impatient.has_turn.wait(TIMEOUT_S)
        impatient.end()

    monkeypatch.undo()
    with connections.exchange():  # there are no more turns than before
        other = waiting_caller(connections)
    other.end()


def test_an_interrupt_while_it_waits_for_a_turn_gives_the_exchange_back(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(turns: Turns) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Turns, "__enter__", interrupted)
    with pytest.raises(KeyboardInterrupt), connections.exchange():
        pass

    assert connections.num_leased == 0


def test_several_may_have_one_at_a_time(connections: Connections):
    connections.turns = Turns(2)
    callers = [Caller(connections) for _ in range(2)]
    for caller in callers:
        assert caller.has_turn.wait(TIMEOUT_S)
    for caller in callers:
        caller.end()
