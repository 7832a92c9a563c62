"""What a node counts: per expert and in all, as its telemetry reports it.

Written by the device thread and the data plane, read by the event loop; one lock, held for a few additions. Takes
`now`.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from learning_at_home.latencies import Latencies, LatencyWindow
from learning_at_home.staleness import Staleness
from learning_at_home.wire.messages import FORWARDS, Operation


@dataclass(slots=True)
class ExpertCounters:
    """Totals since the node started."""

    rows_forward: int = 0
    rows_backward: int = 0
    updates: int = 0
    calls: int = 0
    failures: int = 0
    flop: float = 0.0
    updated_at: float | None = None  # monotonic
    latencies: LatencyWindow = field(default_factory=LatencyWindow)


@dataclass(frozen=True, slots=True)
class ExpertSnapshot:
    """One expert at one moment."""

    uid: str
    rows_forward: int
    rows_backward: int
    updates: int
    calls: int
    failures: int
    flop: float
    p50_ms: float | None
    p95_ms: float | None
    update_age_s: float | None


class Statistics:
    """Thread-safe. `refused` counts what was admitted and dropped: too late, or left when the node stopped."""

    def __init__(self, uids: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._experts = {uid: ExpertCounters() for uid in uids}
        self.refused = 0
        self.rows = 0
        self._staleness = Staleness()

    def answered(
        self, uid: str, operation: Operation, rows: int, flop: float, latency_s: float, updates: int, now: float
    ) -> None:
        """One request was computed and answered. `updates`: the expert's steps so far."""
        with self._lock:
            counters = self._experts[uid]
            counters.calls += 1
            counters.flop += flop
            if operation in FORWARDS:
                counters.rows_forward += rows
            else:
                counters.rows_backward += rows
            _count_updates(counters, updates, now)
            counters.latencies.record(latency_s, now)
            self.rows += rows

    def trained(self, staleness: int, now: float) -> None:
        """A gradient reached an expert that had made so many updates since its forward."""
        with self._lock:
            self._staleness.record(staleness, now)

    def staleness(self, now: float) -> dict[int, int]:
        """How many gradients of the last minute or two were so many updates old."""
        with self._lock:
            return self._staleness.histogram(now)

    def updated(self, uid: str, updates: int, now: float) -> None:
        """The expert has made its update of this number, without a request."""
        with self._lock:
            _count_updates(self._experts[uid], updates, now)

    def failed(self, uid: str) -> None:
        """One request reached the expert and could not be computed."""
        with self._lock:
            self._experts[uid].calls += 1
            self._experts[uid].failures += 1

    def refuse(self, count: int = 1) -> None:
        """Requests were dropped from the queue before they were computed."""
        with self._lock:
            self.refused += count

    def percentiles_ms(self, now: float) -> tuple[float | None, float | None]:
        """p50 and p95 of all calls of the last minute, from admission to answer."""
        with self._lock:
            windows = [counters.latencies.copy(now) for counters in self._experts.values()]
        return Latencies(tuple(part for window in windows for part in window.slices)).percentiles_ms()

    def snapshot(self, now: float) -> list[ExpertSnapshot]:
        """Every expert now. Under the lock counters are copied; the percentiles are made of the copies."""
        with self._lock:
            copies = [
                (uid, copy.copy(counters), counters.latencies.copy(now)) for uid, counters in self._experts.items()
            ]
        return [_snapshot(uid, counters, latencies, now) for uid, counters, latencies in copies]


def _count_updates(counters: ExpertCounters, updates: int, now: float) -> None:
    if updates != counters.updates:
        counters.updates = updates
        counters.updated_at = now


def _snapshot(uid: str, counters: ExpertCounters, latencies: Latencies, now: float) -> ExpertSnapshot:
    p50_ms, p95_ms = latencies.percentiles_ms()
    return ExpertSnapshot(
        uid=uid,
        rows_forward=counters.rows_forward,
        rows_backward=counters.rows_backward,
        updates=counters.updates,
        calls=counters.calls,
        failures=counters.failures,
        flop=counters.flop,
        p50_ms=p50_ms,
        p95_ms=p95_ms,
        update_age_s=None if counters.updated_at is None else now - counters.updated_at,
    )
