"""Percentiles of the durations of the last minute, cheap enough for every call.

Pure: takes `now`. Durations are counted in logarithmic steps within slices of time, so a percentile is right to about
6 %, recording is one addition, and what is idle costs almost nothing.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

WINDOW_S = 60.0
SLICE_S = 5.0
STEPS_PER_DECADE = 20  # a step is 12 % wide
SHORTEST_S = 1e-6


class LatencyWindow:
    """Durations of the last WINDOW_S seconds. Not thread-safe."""

    def __init__(self) -> None:
        self._slices: deque[tuple[float, dict[int, int]]] = deque()  # start of the slice, counts by step

    def record(self, duration_s: float, now: float) -> None:
        if not self._slices or now >= self._slices[-1][0] + SLICE_S:
            self._drop_old(now)
            self._slices.append((now, {}))
        counts = self._slices[-1][1]
        step = round(STEPS_PER_DECADE * math.log10(max(1.0, duration_s / SHORTEST_S)))
        counts[step] = counts.get(step, 0) + 1

    def copy(self, now: float, last_s: float = WINDOW_S) -> Latencies:
        """What the window holds, or its last seconds alone, to a slice; to be judged outside of its owner's lock.

        Only the newest slice still changes.
        """
        self._drop_old(now)
        counts = [part for start_s, part in self._slices if start_s + SLICE_S > now - last_s]
        return Latencies((*counts[:-1], dict(counts[-1])) if counts else ())

    def percentiles_ms(self, now: float) -> tuple[float, float] | tuple[None, None]:
        """p50 and p95 in milliseconds; None when nothing was recorded in the window."""
        return self.copy(now).percentiles_ms()

    def _drop_old(self, now: float) -> None:
        while self._slices and self._slices[0][0] + SLICE_S <= now - WINDOW_S:
            self._slices.popleft()


@dataclass(frozen=True, slots=True)
class Latencies:
    """Counts by step, of one slice each. Nobody changes them any more."""

    slices: tuple[dict[int, int], ...]

    def percentiles_ms(self) -> tuple[float, float] | tuple[None, None]:
        """p50 and p95 in milliseconds; None when there are none."""
        counts: dict[int, int] = {}
        for part in self.slices:
            for step, count in part.items():
                counts[step] = counts.get(step, 0) + count
        total = sum(counts.values())
        if not total:
            return None, None
        return _percentile_ms(counts, total, 0.5), _percentile_ms(counts, total, 0.95)


def _percentile_ms(counts: dict[int, int], total: int, share: float) -> float:
    rank = math.ceil(share * total)
    seen = 0
    for step in sorted(counts):
        seen += counts[step]
        if seen >= rank:
            return round(SHORTEST_S * 10 ** (step / STEPS_PER_DECADE) * 1e3, 4)
    raise AssertionError("the counts add up to their total")
