"""Whoever waits for what usually comes at once does not fall asleep; whoever waits long does."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from learning_at_home.transport import busy_poll
from learning_at_home.transport.busy_poll import BusyPoll

LIMIT_S = 0.002
ROUNDS = 20  # until the last waits are all that counts


class Sockets:
    """One that is polled, and how often it was looked at without waiting or with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.looks: list[int] = []
        self.answer_at_look = 0  # something arrives before so many looks were taken; 0: nobody sends
        self.items = [(self.ours.fileno(), int(zmq.POLLIN))]
        monkeypatch.setattr(busy_poll, "poll", self._poll)
        monkeypatch.setattr(busy_poll, "STOLEN_S", math.inf)  # other tests may want this core

    def _poll(self, items: list[tuple[int, int]], timeout_ms: int) -> list[tuple[int, int]]:
        self.looks.append(timeout_ms)
        if len(self.looks) == self.answer_at_look:
            self.theirs.send(b"\0")
        return list(zmq.zmq_poll(items, timeout_ms))

    def wait(self, waiter: BusyPoll, timeout_ms: int = 1_000, answer_at_look: int = 1) -> list[int]:
        """One wait; the time limits of the looks that it took."""
        self.looks, self.answer_at_look = [], answer_at_look
        if waiter.poll(self.items, timeout_ms):
            self.ours.recv(1)
        return self.looks


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sockets]:
    pair = Sockets(monkeypatch)
    yield pair
    pair.ours.close()
    pair.theirs.close()


def used_to_quick_answers(sockets: Sockets) -> BusyPoll:
    waiter = BusyPoll(60.0, num_cores=2)
    for _ in range(ROUNDS):
        sockets.wait(waiter)
    return waiter


def test_the_first_wait_sleeps(sockets: Sockets) -> None:
    assert sockets.wait(BusyPoll(LIMIT_S, num_cores=2)) == [1_000]


def test_after_quick_answers_it_looks_again_and_again_and_never_sleeps(sockets: Sockets) -> None:
    waiter = used_to_quick_answers(sockets)
    assert sockets.wait(waiter, answer_at_look=7) == [0] * 7


def test_a_single_core_is_left_to_whoever_is_waited_for(sockets: Sockets) -> None:
    waiter = BusyPoll(60.0, num_cores=1)
    for _ in range(ROUNDS):
        assert sockets.wait(waiter) == [1_000]


def test_it_spins_for_its_limit_and_then_sleeps(sockets: Sockets) -> None:
    waiter = BusyPoll(LIMIT_S, num_cores=2)
    waiter._expected_s = 0.0
    began = time.thread_time()
    looks = sockets.wait(waiter, timeout_ms=100, answer_at_look=0)
    assert set(looks[:-1]) == {0}
    assert 0 < looks[-1] < 100
    assert time.thread_time() - began < 0.05  # of 0.1 s


def test_it_keeps_to_the_time_limit_of_the_wait(sockets: Sockets) -> None:
    waiter = used_to_quick_answers(sockets)
    began = time.monotonic()
    sockets.wait(waiter, timeout_ms=20, answer_at_look=0)
    assert time.monotonic() - began < 5.0  # of a limit of 60
    assert sockets.looks[-1] == 0


def test_slow_answers_end_it_and_quick_ones_bring_it_back(sockets: Sockets) -> None:
    waiter = BusyPoll(LIMIT_S, num_cores=2)
    waiter._expected_s = 0.0
    for _ in range(ROUNDS):
        sockets.wait(waiter, timeout_ms=10, answer_at_look=0)
    assert sockets.wait(waiter, timeout_ms=10, answer_at_look=0) == [10]
    for _ in range(ROUNDS):
        sockets.wait(waiter)
    assert sockets.wait(waiter) == [0]


def test_one_long_wait_counts_no_more_than_another_slow_one(sockets: Sockets) -> None:
    waiter = BusyPoll(LIMIT_S, num_cores=2)
    waiter._expected_s = 0.0
    sockets.wait(waiter, timeout_ms=200, answer_at_look=0)
    assert sockets.wait(waiter)[0] == 0


def test_looking_when_there_is_no_time_to_wait_tells_nothing(sockets: Sockets) -> None:
    waiter = BusyPoll(60.0, num_cores=2)
    for _ in range(ROUNDS):
        sockets.wait(waiter, timeout_ms=0, answer_at_look=0)
    assert sockets.wait(waiter) == [1_000]


def test_who_gets_its_core_back_late_sleeps_for_a_while_and_ever_longer(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiter = BusyPoll(1.0, num_cores=2)
    waiter._expected_s = 0.0
    monkeypatch.setattr(busy_poll, "STOLEN_S", 0.0)  # every look
    holds: list[float] = []
    for _ in range(8):
        waiter._held_off_until_s = 0.0
        assert sockets.wait(waiter, answer_at_look=2)[0] == 0
        holds.append(waiter._held_off_until_s - time.monotonic())
        assert sockets.wait(waiter) != [0] or time.monotonic() >= waiter._held_off_until_s

    assert holds[0] <= busy_poll.FIRST_HOLD_OFF_S
    assert busy_poll.MOST_HOLD_OFF_S / 2 < holds[-1] <= busy_poll.MOST_HOLD_OFF_S

    monkeypatch.setattr(busy_poll, "STOLEN_S", math.inf)
    waiter._held_off_until_s = 0.0
    for _ in range(50):
        sockets.wait(waiter)
    assert waiter._hold_off_s == busy_poll.FIRST_HOLD_OFF_S


@pytest.mark.parametrize("text, most", [("max 100000\n", 1 << 20), ("150000 100000\n", 1), ("50000 100000\n", 1)])
def test_a_containers_quota_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, most: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(busy_poll, "CPU_QUOTA", tmp_path / "cpu.max")
    assert 1 <= busy_poll.usable_cores() <= most
    monkeypatch.setattr(busy_poll, "CPU_QUOTA", tmp_path / "none")
    assert busy_poll.usable_cores() >= 1


def test_a_wait_without_a_limit_spins_and_sleeps_too(sockets: Sockets) -> None:
    waiter = BusyPoll(LIMIT_S, num_cores=2)
    waiter._expected_s = 0.0
    looks = sockets.wait(waiter, timeout_ms=-1, answer_at_look=2)
    assert looks == [0, 0]
