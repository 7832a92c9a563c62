"""Counts of a trainer's expert calls: what `swarm.stats()` shows and telemetry sends.

Thread-safe; `now` is monotonic seconds. Bounds: latencies of the last 60 s and at most 4,096 of them; the oldest go
first, so percentiles of a very busy trainer cover less time.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

LATENCY_WINDOW_S = 60.0
MAX_LATENCIES = 4_096  # at 1,000 calls per second four seconds: enough for a p95, and 64 KiB


@dataclass(frozen=True, slots=True)
class NodeStats:
    """Calls of this process to one node. Totals, except the latencies (last 60 s; None when there were none)."""

    name: str
    calls: int
    failures: int
    rows: int
    p50_ms: float | None
    p95_ms: float | None


@dataclass(frozen=True, slots=True)
class SwarmStats:
    """Calls of this process to experts. Totals since connecting, except the latencies (last 60 s)."""

    calls: int  # pieces of work sent: one per expert, operation and part of a batch
    failures: int  # of those, how many had no usable answer (also those that were left behind after the grace time)
    rows: int  # rows in answered calls, forward and backward
    late_answers: int  # came after nobody waited for them any more
    zero_gradient_rows: int  # rows of a DMoE that got no gradient from any expert
    lost_contributions: int  # rows times experts that answered forward and not backward
    p50_ms: float | None
    p95_ms: float | None
    nodes: dict[str, NodeStats] = field(default_factory=dict)  # by public key, hex


class _Latencies:
    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque(maxlen=MAX_LATENCIES)

    def add(self, now: float, seconds: float) -> None:
        self._seen.append((now, seconds))

    def percentiles_ms(self, now: float) -> tuple[float | None, float | None]:
        recent = sorted(seconds for at, seconds in self._seen if at > now - LATENCY_WINDOW_S)
        if not recent:
            return None, None
        return tuple(1000 * recent[min(len(recent) - 1, int(len(recent) * q))] for q in (0.5, 0.95))  # type: ignore[return-value]


@dataclass(slots=True)
class _Counts:
    name: str
    calls: int = 0
    failures: int = 0
    rows: int = 0
    latencies: _Latencies = field(default_factory=_Latencies)


class CallStats:
    """The counters behind SwarmStats."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = _Counts("")
        self._nodes: dict[bytes, _Counts] = {}  # bounded by the nodes of the project that this process has called
        self._zero_gradient_rows = 0
        self._lost_contributions = 0

    def answered(self, public_key: bytes, name: str, rows: int, seconds: float, now: float) -> None:
        with self._lock:
            for counts in (self._total, self._node(public_key, name)):
                counts.calls += 1
                counts.rows += rows
                counts.latencies.add(now, seconds)

    def failed(self, public_key: bytes, name: str) -> None:
        with self._lock:
            for counts in (self._total, self._node(public_key, name)):
                counts.calls += 1
                counts.failures += 1

    def lost_gradients(self, zero_rows: int, contributions: int) -> None:
        with self._lock:
            self._zero_gradient_rows += zero_rows
            self._lost_contributions += contributions

    def snapshot(self, now: float, late_answers: int) -> SwarmStats:
        with self._lock:
            p50_ms, p95_ms = self._total.latencies.percentiles_ms(now)
            return SwarmStats(
                calls=self._total.calls,
                failures=self._total.failures,
                rows=self._total.rows,
                late_answers=late_answers,
                zero_gradient_rows=self._zero_gradient_rows,
                lost_contributions=self._lost_contributions,
                p50_ms=p50_ms,
                p95_ms=p95_ms,
                nodes={key.hex(): _node_stats(counts, now) for key, counts in self._nodes.items()},
            )

    def _node(self, public_key: bytes, name: str) -> _Counts:
        counts = self._nodes.get(public_key)
        if counts is None:
            counts = self._nodes[public_key] = _Counts(name)
        return counts


def _node_stats(counts: _Counts, now: float) -> NodeStats:
    p50_ms, p95_ms = counts.latencies.percentiles_ms(now)
    return NodeStats(counts.name, counts.calls, counts.failures, counts.rows, p50_ms, p95_ms)
