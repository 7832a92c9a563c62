"""Wait for sockets without falling asleep, where what is awaited usually comes at once.

To put a thread to sleep and to wake it costs more than a small call has to compute, and leaves its core with cold
caches: on loopback or inside a rack that is a third of a lone call. So a waiter looks again and again for a moment,
lets whoever wants its core go first, and sleeps when the moment has passed. How long the last waits took tells whether
to try: over a wide-area network, or while nothing happens, nobody spins.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from learning_at_home.transport.socket_options import poll

SMOOTHING = 0.25  # weight of the newest wait in what is expected of the next: about the last four
_yield_core: Callable[[], None] = getattr(os, "sched_yield", lambda: None)


def usable_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class BusyPoll:
    """One waiter's polling. Not thread-safe."""

    def __init__(self, limit_s: float, num_cores: int | None = None) -> None:
        """`limit_s`: the longest time to spin, and the longest expected wait for which it is tried.

        Never on a single core: whoever is waited for needs it.
        """
        self._limit_s = limit_s if (usable_cores() if num_cores is None else num_cores) > 1 else 0.0
        self._expected_s = self._limit_s  # of the next wait; at the limit nobody spins

    def poll(self, items: Sequence[tuple[Any, int]], timeout_ms: int) -> list[tuple[Any, int]]:
        """As `socket_options.poll`."""
        began = now = time.monotonic()
        ready: list[tuple[Any, int]] = []
        if self._expected_s < self._limit_s:
            until = began + (self._limit_s if timeout_ms < 0 else min(self._limit_s, timeout_ms / 1000))
            while now < until and not (ready := poll(items, 0)):
                _yield_core()
                now = time.monotonic()
        if not ready:
            ready = poll(items, timeout_ms if timeout_ms <= 0 else max(0, timeout_ms - round(1000 * (now - began))))
        waited_s = time.monotonic() - began
        if ready or waited_s >= self._limit_s:  # one long wait does not count for many
            self._expected_s += SMOOTHING * (min(waited_s, 2 * self._limit_s) - self._expected_s)
        return ready
