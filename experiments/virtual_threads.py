"""Threads that take turns on a virtual clock: one runs at a time, and time passes only while all of them wait.

So synchronous code (a training step that waits for experts) runs as it is, many times at once, and an hour of delays
costs what is computed in it. What happens at one moment happens in the order in which it was planned: the same seeds
give the same run. Threaded, but nothing runs at the same time as anything else.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable

START_S = 1_000.0
WALL_START_S = 1_800_000_000.0


class Ended(BaseException):
    """Raised in a thread that still waits when the run is over, because another one failed."""


class Stalled(RuntimeError):
    """A thread waits for something that nothing will bring."""


class VirtualThreads:
    """The clock (learning_at_home.clock.Clock), what is planned, and whose turn it is."""

    def __init__(self) -> None:
        self._now_s = START_S
        self._planned: list[tuple[float, int, Callable[[], None]]] = []  # heap
        self._order = itertools.count()
        self._threads: list[VirtualThread] = []
        self._turn_is_back = threading.Semaphore(0)
        self.ended = False

    def monotonic_s(self) -> float:
        return self._now_s

    def wall_s(self) -> float:
        return WALL_START_S + self._now_s

    def plan(self, at_s: float, action: Callable[[], None]) -> None:
        """Have something done at a moment, which is now at the earliest, by the thread that called `run`."""
        heapq.heappush(self._planned, (max(at_s, self._now_s), next(self._order), action))

    def start(self, function: Callable[[], None]) -> VirtualThread:
        """A thread whose first turn comes now."""
        thread = VirtualThread(self, function)
        self._threads.append(thread)
        self.plan(self._now_s, thread.take_turn)
        return thread

    def run(self) -> None:
        """Until all threads have ended; what else is planned is left. Raises what one raised, or Stalled."""
        try:
            while any(thread.is_running for thread in self._threads):
                if not self._planned:
                    raise Stalled("every thread waits, and nothing is planned")
                self._now_s, _, action = heapq.heappop(self._planned)
                action()
                for thread in self._threads:
                    if thread.error is not None:
                        raise thread.error
        finally:
            self.ended = True
            for thread in self._threads:
                thread.end()
            self._threads.clear()

    def let_run(self, thread: VirtualThread) -> None:
        """Until it waits or ends."""
        thread.its_turn.release()
        self._turn_is_back.acquire()

    def give_turn_back(self) -> None:
        self._turn_is_back.release()

    @staticmethod
    def current() -> VirtualThread:
        """The thread that calls. Raises RuntimeError in one that is none of these."""
        thread = getattr(_own, "thread", None)
        if thread is None:
            raise RuntimeError("only a thread that VirtualThreads started can wait in virtual time")
        return thread  # type: ignore[no-any-return]


_own = threading.local()


class VirtualThread:
    """One of them."""

    def __init__(self, threads: VirtualThreads, function: Callable[[], None]) -> None:
        self._threads = threads
        self._function = function
        self._waits = 0  # counts them, so that the end of an earlier one is known as such
        self._is_waiting = True
        self.its_turn = threading.Semaphore(0)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="virtual", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._function is not _nothing

    def wait(self, until_s: float) -> None:
        """Called by the thread itself: until a moment, or until `wake`, whichever comes first."""
        if self._threads.ended:
            raise Ended
        self._waits += 1
        this_one = self._waits

        def its_time() -> None:
            if self._is_waiting and self._waits == this_one:
                self.take_turn()

        self._threads.plan(until_s, its_time)
        self._is_waiting = True
        self._threads.give_turn_back()
        self._wait_for_turn()

    def wake(self) -> None:
        """End its wait now, if it waits."""
        if self._is_waiting and self._waits:
            self._waits += 1  # the moment it waited for means nothing any more
            self._is_waiting = False
            self._threads.plan(self._threads.monotonic_s(), self.take_turn)

    def take_turn(self) -> None:
        self._is_waiting = False
        self._threads.let_run(self)

    def end(self) -> None:
        """Have it raise Ended where it waits, and wait for its end."""
        if self.is_running:
            self.take_turn()
        self._thread.join()

    def _wait_for_turn(self) -> None:
        self.its_turn.acquire()
        if self._threads.ended:
            raise Ended

    def _run(self) -> None:
        _own.thread = self
        try:
            self._wait_for_turn()
            self._function()
        except Ended:
            pass
        except BaseException as error:  # noqa: BLE001 - the thread's edge: `run` raises it
            self.error = error
        finally:
            self._function = _nothing
            self._threads.give_turn_back()


def _nothing() -> None:
    """What a thread does that has ended."""
