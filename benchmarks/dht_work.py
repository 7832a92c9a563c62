"""What DHTs are timed at, ours and others: operations one after the other, their median or their 95th percentile.

Needs nothing but the standard library: rivals run it in an environment of their own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from benchmarks.worker import Work

VALUE_BYTES = 100
LIFE_S = 3_600.0  # longer than any benchmark
KEYS_HELD = 100  # stored before any get is timed
GRID = (64, 64)
EXPERTS_DECLARED = 512
PREFIX = "ffn0"


def seconds_of(operation: Callable[[], object], work: Work) -> float:
    """For "...-p95" the 95th percentile of just `work.rows` operations, otherwise the median of those in the budget."""
    of_percentile = work.name.endswith("-p95")
    deadline = time.perf_counter() + work.budget_s
    taken: list[float] = []
    while len(taken) < work.rows or (not of_percentile and time.perf_counter() < deadline):
        started = time.perf_counter()
        operation()
        taken.append(time.perf_counter() - started)
    return percentile_95(taken) if of_percentile else statistics.median(taken)


def percentile_95(values: list[float]) -> float:
    """Of so many the one that a twentieth is above."""
    return sorted(values)[(len(values) * 95 - 1) // 100]
