"""How long batches take, learned from those that were computed. Pure.

Rows are counted in powers of two: a batch of 40 rows is expected to take what batches of 32 to 63 rows took.
"""

from __future__ import annotations

import math

from learning_at_home.wire.messages import Operation

SMOOTHING = 0.3  # weight of the newest batch: the first ones, which load libraries, are forgotten after ten


class Costs:
    """Seconds per batch, by layer, operation and size. One thread writes at a time; reading needs no lock."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, Operation, int], float] = {}

    def observe(self, layer: str, operation: Operation, rows: int, seconds: float) -> None:
        """A batch of so many rows took so long."""
        key = (layer, operation, rows.bit_length())
        known = self._seconds.get(key)
        self._seconds[key] = seconds if known is None else known + SMOOTHING * (seconds - known)

    def expected_s(self, layer: str, operation: Operation, rows: int) -> float:
        """What such a batch is expected to take; infinity when there was none like it."""
        return self._seconds.get((layer, operation, rows.bit_length()), math.inf)
