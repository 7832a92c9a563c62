"""Turns on a virtual clock: order, time, and the end of everything when one fails."""

import threading

import pytest

from experiments.virtual_threads import Stalled, VirtualThreads


def test_time_passes_only_while_all_wait_and_in_the_order_of_their_moments():
    threads, seen = VirtualThreads(), []
    start_s = threads.monotonic_s()

    def waits(name, *moments):
        for moment in moments:
            threads.current().wait(start_s + moment)
            seen.append((name, threads.monotonic_s() - start_s))

    threads.start(lambda: waits("a", 1.0, 3_600.0))
    threads.start(lambda: waits("b", 2.0, 3_599.0))
    threads.run()

    assert seen == [("a", 1.0), ("b", 2.0), ("b", 3_599.0), ("a", 3_600.0)]
    assert threads.wall_s() > 1e9


def test_a_wait_ends_early_by_a_wake_and_only_once():
    threads, seen = VirtualThreads(), []
    start_s = threads.monotonic_s()

    def sleeper():
        for _ in range(2):
            threads.current().wait(threads.monotonic_s() + 10.0)
            seen.append(threads.monotonic_s() - start_s)

    thread = threads.start(sleeper)
    threads.plan(start_s + 4.0, thread.wake)
    threads.plan(start_s + 4.0, thread.wake)
    threads.run()

    assert seen == [4.0, 14.0]


def test_what_one_raises_ends_the_others_where_they_wait():
    threads, ended = VirtualThreads(), []
    alive = threading.active_count()

    def waits():
        try:
            threads.current().wait(threads.monotonic_s() + 1_000.0)
        finally:
            ended.append(True)

    def fails():
        threads.current().wait(threads.monotonic_s() + 1.0)
        raise ZeroDivisionError

    threads.start(waits)
    threads.start(fails)
    with pytest.raises(ZeroDivisionError):
        threads.run()

    assert ended == [True]
    assert threading.active_count() == alive


def test_a_thread_that_waits_for_nothing_that_will_happen_is_told():
    threads = VirtualThreads()

    def waits_for_nobody():
        thread = threads.current()
        thread.wait(threads.monotonic_s())
        threads.give_turn_back()
        thread.its_turn.acquire()

    threads.start(waits_for_nobody)
    with pytest.raises(Stalled):
        threads.run()


def test_only_a_virtual_thread_can_wait():
    with pytest.raises(RuntimeError, match="virtual time"):
        VirtualThreads().current()
