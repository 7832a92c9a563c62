"""Wait for sockets without falling asleep, where what is awaited usually comes at once.

To put a thread to sleep and to wake it costs more than a small call has to compute, and leaves its core with cold
caches: on loopback or inside a rack that is a third of a lone call. So a waiter looks again and again for a moment,
lets whoever wants its core go first, and sleeps when the moment has passed. How long the last waits took tells whether
to try: over a wide-area network, or while nothing happens, nobody spins. Nor where others compute: who has let them go
first gets its core back after milliseconds, who sleeps is woken at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from learning_at_home.transport.socket_options import poll

STOLEN_S = 1e-3  # a look that takes so long: somebody else had the core for most of a turn
FIRST_HOLD_OFF_S, MOST_HOLD_OFF_S = 5e-3, 0.2  # no spinning for so long after that; doubled each time
FORGIVEN = 0.9  # of the time to hold off is left after a wait that was not disturbed
SMOOTHING = 0.25  # weight of the newest wait in what is expected of the next: about the last four
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a Linux container: microseconds per period
_yield_core: Callable[[], None] = getattr(os, "sched_yield", lambda: None)


def usable_cores() -> int:
    """How many cores this process may use at a time, a container's quota included."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file; "max": no quota
        return cores


class BusyPoll:
    """One waiter's polling. Not thread-safe."""

    def __init__(self, limit_s: float, num_cores: int | None = None) -> None:
        """`limit_s`: the longest time to spin, and the longest expected wait for which it is tried.

        Never on a single core: whoever is waited for needs it.
        """
        self._limit_s = limit_s if (usable_cores() if num_cores is None else num_cores) > 1 else 0.0
        self._expected_s = self._limit_s  # of the next wait; at the limit nobody spins
        self._hold_off_s = FIRST_HOLD_OFF_S
        self._held_off_until_s = 0.0

    def poll(self, items: Sequence[tuple[Any, int]], timeout_ms: int) -> list[tuple[Any, int]]:
        """As `socket_options.poll`."""
        began = now = time.monotonic()
        ready: list[tuple[Any, int]] = []
        if self._expected_s < self._limit_s and now >= self._held_off_until_s:
            until = began + (self._limit_s if timeout_ms < 0 else min(self._limit_s, timeout_ms / 1000))
            while now < until and not (ready := poll(items, 0)):
                looked = now
                _yield_core()
                now = time.monotonic()
                if now - looked >= STOLEN_S:
                    self._held_off_until_s = now + self._hold_off_s
                    self._hold_off_s = min(MOST_HOLD_OFF_S, 2 * self._hold_off_s)
                    break
            else:
                self._hold_off_s = max(FIRST_HOLD_OFF_S, FORGIVEN * self._hold_off_s)
        if not ready:
            ready = poll(items, timeout_ms if timeout_ms <= 0 else max(0, timeout_ms - round(1000 * (now - began))))
        waited_s = time.monotonic() - began
        if ready or waited_s >= self._limit_s:  # one long wait does not count for many
            self._expected_s += SMOOTHING * (min(waited_s, 2 * self._limit_s) - self._expected_s)
        return ready
