"""Counts of a trainer's expert calls: what `swarm.stats()` shows and telemetry sends.

Thread-safe; `now` is monotonic seconds. Whoever looks makes no caller wait: under the lock counters are copied, and the
percentiles are made of the copies.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from learning_at_home.latencies import Latencies, LatencyWindow
from learning_at_home.staleness import Forwards, Staleness, figures_of
from learning_at_home.wire.messages import EVALUATIONS, Operation

NOBODY_LEFT_ALONE: Mapping[bytes, float] = {}
NEWEST_SHARE = 0.1  # of an answer in the running mean of a node's answer times


@dataclass(frozen=True, slots=True)
class NodeStats:
    """Calls of this process to one node. Totals, except the latencies (last 60 s; None when there were none)."""

    name: str
    calls: int
    failures: int
    retries: int
    rows: int
    p50_ms: float | None
    p95_ms: float | None
    left_alone_s: float = 0.0  # for so long no layer will choose it, since it was silent, slow or failed often


@dataclass(frozen=True, slots=True)
class SwarmStats:
    """Calls of this process to experts. Totals since connecting, except the latencies (last 60 s)."""

    calls: int  # pieces of work sent: one per expert, operation and part of a batch
    failures: int  # of those, how many had no usable answer (also those that were left behind after the grace time)
    retries: int  # calls sent once more: their node was full, their expert raised, or the connection was lost
    rows: int  # rows in answered calls, forward and backward
    late_answers: int  # came after nobody waited for them any more
    zero_gradient_rows: int  # rows of a DMoE that got no gradient from any expert
    lost_contributions: int  # rows times experts that answered forward and not backward
    passed_rows: int  # rows that passed through a DMoE unchanged, since too few experts answered or none had room
    p50_ms: float | None
    p95_ms: float | None
    # Updates that experts made between a forward of this trainer and its backward, which is not counted itself (last 60
    # to 120 s); None when nothing was trained. Where hosts gather rows for an update it may have been one more.
    staleness_p50: int | None
    staleness_max: int | None
    nodes: dict[str, NodeStats] = field(default_factory=dict)  # by public key, hex


@dataclass(frozen=True, slots=True)
class Pace:
    """How soon a node answers."""

    mean_s: float  # of its answers, the newest counting most
    load_s: float  # its last answer's hint: how long new work would wait then
    told_s: float  # monotonic time of its last answer

    def load_now_s(self, now: float) -> float:
        """What is left of the wait that it told."""
        return max(0.0, self.load_s - (now - self.told_s))


@dataclass(frozen=True, slots=True)
class Lately:
    """A node's calls: totals, and the p95 of the last seconds in ms (None when there were none)."""

    name: str
    calls: int
    failures: int
    p95_ms: float | None


@dataclass(frozen=True, slots=True)
class _Copy:
    """Counts at one moment."""

    name: str
    calls: int
    failures: int
    retries: int
    rows: int
    latencies: Latencies


@dataclass(slots=True)
class _Counts:
    name: str
    calls: int = 0
    failures: int = 0
    retries: int = 0
    rows: int = 0
    mean_s: float = -1.0  # before the first answer
    load_ms: float = 0.0
    told_s: float = 0.0
    latencies: LatencyWindow = field(default_factory=LatencyWindow)

    def copy(self, now: float) -> _Copy:
        return _Copy(self.name, self.calls, self.failures, self.retries, self.rows, self.latencies.copy(now))


class CallStats:
    """The counters behind SwarmStats."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nodes: dict[bytes, _Counts] = {}  # bounded by the nodes of the project that this process has called
        self._zero_gradient_rows = 0
        self._lost_contributions = 0
        self._passed_rows = 0
        self._forwards = Forwards()
        self._staleness = Staleness()

    def answered(
        self, public_key: bytes, name: str, rows: int, seconds: float, now: float, load_ms: float = 0.0
    ) -> None:
        with self._lock:
            counts = self._nodes.get(public_key) or self._node(public_key, name)
            counts.calls += 1
            counts.rows += rows
            counts.mean_s = seconds if counts.mean_s < 0 else counts.mean_s + NEWEST_SHARE * (seconds - counts.mean_s)
            counts.load_ms = load_ms
            counts.told_s = now
            counts.latencies.record(seconds, now)

    def told_updates(self, forward: Hashable, operation: Operation, updates: int, now: float) -> None:
        """The answer to a forward, or to its backward, said how many updates the expert had made."""
        with self._lock:
            if operation == "forward":
                self._forwards.remember(forward, updates)
            elif operation in EVALUATIONS:
                pass  # the same rows may be trained on, too
            elif (before := self._forwards.take(forward)) is not None and updates and operation == "backward":
                self._staleness.record(updates - before - 1, now)

    def failed(self, public_key: bytes, name: str) -> None:
        with self._lock:
            counts = self._node(public_key, name)
            counts.calls += 1
            counts.failures += 1

    def retried(self, public_key: bytes, name: str) -> None:
        with self._lock:
            self._node(public_key, name).retries += 1

    def lost_gradients(self, zero_rows: int, contributions: int) -> None:
        with self._lock:
            self._zero_gradient_rows += zero_rows
            self._lost_contributions += contributions

    def passed_through(self, rows: int) -> None:
        with self._lock:
            self._passed_rows += rows

    def pace(self, public_key: bytes) -> Pace | None:
        """None for a node that has not answered yet."""
        with self._lock:
            counts = self._nodes.get(public_key)
            if counts is None or counts.mean_s < 0:
                return None
            return Pace(counts.mean_s, counts.load_ms / 1000, counts.told_s)

    def lately(self, public_key: bytes, now: float, last_s: float) -> Lately | None:
        """None for a node that was not called yet."""
        with self._lock:
            counts = self._nodes.get(public_key)
            if counts is None:
                return None
            name, calls, failures = counts.name, counts.calls, counts.failures
            latencies = counts.latencies.copy(now, last_s)
        return Lately(name, calls, failures, latencies.percentiles_ms()[1])

    def snapshot(
        self, now: float, late_answers: int, left_alone_s: Mapping[bytes, float] = NOBODY_LEFT_ALONE
    ) -> SwarmStats:
        """`left_alone_s`: seconds, by public key."""
        with self._lock:
            nodes = {key.hex(): counts.copy(now) for key, counts in self._nodes.items()}
            zero_gradient_rows, lost_contributions = self._zero_gradient_rows, self._lost_contributions
            passed_rows = self._passed_rows
            staleness = figures_of(self._staleness.histogram(now))
        everything = Latencies(tuple(part for counts in nodes.values() for part in counts.latencies.slices))
        p50_ms, p95_ms = everything.percentiles_ms()
        return SwarmStats(
            calls=sum(counts.calls for counts in nodes.values()),
            failures=sum(counts.failures for counts in nodes.values()),
            retries=sum(counts.retries for counts in nodes.values()),
            rows=sum(counts.rows for counts in nodes.values()),
            late_answers=late_answers,
            zero_gradient_rows=zero_gradient_rows,
            lost_contributions=lost_contributions,
            passed_rows=passed_rows,
            p50_ms=p50_ms,
            p95_ms=p95_ms,
            staleness_p50=None if staleness is None else staleness.median,
            staleness_max=None if staleness is None else staleness.largest,
            nodes={
                key: _node_stats(counts, left_alone_s.get(bytes.fromhex(key), 0.0)) for key, counts in nodes.items()
            },
        )

    def _node(self, public_key: bytes, name: str) -> _Counts:
        counts = self._nodes.get(public_key)
        if counts is None:
            counts = self._nodes[public_key] = _Counts(name)
        return counts


def _node_stats(counts: _Copy, left_alone_s: float) -> NodeStats:
    p50_ms, p95_ms = counts.latencies.percentiles_ms()
    totals = counts.name, counts.calls, counts.failures, counts.retries, counts.rows
    return NodeStats(*totals, p50_ms, p95_ms, left_alone_s)
