"""How old the weights were for which a gradient was computed: the updates that an expert made between a forward and its
backward. Pure: takes `now`.

Both ends measure it without a word on the wire: a node remembers how many updates an expert had made at a forward, a
trainer what the answer said. What is remembered is bounded; a backward whose forward was forgotten is not counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

GENERATION_S = 60.0  # figures are of the last one to two of these
EXACT_UP_TO = 256  # larger numbers are counted in steps of less than 1 %
MAX_FORWARDS = 16_384  # about 520 bytes each: 9 MB


@dataclass(frozen=True, slots=True)
class StalenessFigures:
    """In updates."""

    median: int
    largest: int


class Staleness:
    """What was counted lately. Not thread-safe."""

    def __init__(self) -> None:
        self._began = -GENERATION_S
        self._counts: dict[int, int] = {}
        self._counts_before: dict[int, int] = {}

    def record(self, updates: int, now: float) -> None:
        """A gradient reached an expert that had made so many updates since its forward."""
        self._age(now)
        step = _step(max(0, updates))
        self._counts[step] = self._counts.get(step, 0) + 1

    def histogram(self, now: float) -> dict[int, int]:
        """How many gradients were so many updates old, in ascending order."""
        self._age(now)
        keys = sorted(self._counts.keys() | self._counts_before.keys())
        return {key: self._counts.get(key, 0) + self._counts_before.get(key, 0) for key in keys}

    def _age(self, now: float) -> None:
        if now >= self._began + GENERATION_S:
            is_next = now < self._began + 2 * GENERATION_S
            self._counts_before, self._counts = (self._counts if is_next else {}), {}
            self._began = now


def figures_of(histogram: dict[int, int]) -> StalenessFigures | None:
    """None when nothing was counted."""
    left = sum(histogram.values()) // 2
    for updates, count in histogram.items():
        if left < count:
            return StalenessFigures(updates, max(histogram))
        left -= count
    return None


class Forwards:
    """With how many updates forwards were computed, until their backward; the oldest are forgotten. Not thread-safe."""

    def __init__(self, limit: int = MAX_FORWARDS) -> None:
        self._limit = limit
        self._updates: OrderedDict[Hashable, int] = OrderedDict()

    def remember(self, forward: Hashable, updates: int) -> None:
        self._updates[forward] = updates
        if len(self._updates) > self._limit:
            self._updates.popitem(last=False)

    def take(self, forward: Hashable) -> int | None:
        """The updates at this forward, which is forgotten; None when it is not known."""
        return self._updates.pop(forward, None)


def _step(updates: int) -> int:
    shift = max(0, updates.bit_length() - EXACT_UP_TO.bit_length() + 1)
    return updates >> shift << shift
