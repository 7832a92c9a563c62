"""Sums over spans of time, before they are written. Pure.

Every figure is a sum, so a span may be written in parts: the database adds them up (backend/series/repository.py).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from backend.live.rates import MAX_COUNT, Counters
from dashboard.view import ExpertHealth, NodeHealth

RESOLUTIONS_S = (10, 60, 3_600, 86_400)
NODE_RESOLUTIONS_S = RESOLUTIONS_S[1:]  # a row per node every 10 s would be most of the database
HOUR_S = 3_600
BEAT_HOURS = 24

_STATE_COLUMN: dict[NodeHealth, str] = {
    "online": "online_s",
    "degraded": "degraded_s",
    "stale": "stale_s",
    "draining": "paused_s",
    "paused": "paused_s",
    "offline": "offline_s",
}
_HEALTH_COLUMN: dict[ExpertHealth, str] = {
    "serving": "serving_sum",
    "degraded": "degraded_sum",
    "stale": "stale_sum",
    "lost": "lost_sum",
    "orphaned": "orphaned_sum",
}


@dataclass(slots=True)
class Rollup:
    """The columns of RollupModel, in its words."""

    rows_forward: int = 0
    rows_backward: int = 0
    calls: int = 0
    failures: int = 0
    updates: int = 0
    flop: float = 0.0
    samples: int = 0
    serving_sum: float = 0.0
    degraded_sum: float = 0.0
    stale_sum: float = 0.0
    lost_sum: float = 0.0
    orphaned_sum: float = 0.0
    nodes_online_sum: float = 0.0
    latency_samples: int = 0
    p50_sum: float = 0.0
    p95_sum: float = 0.0
    online_s: float = 0.0
    degraded_s: float = 0.0
    stale_s: float = 0.0
    paused_s: float = 0.0
    offline_s: float = 0.0

    def count(self, added: Counters) -> None:
        """Work that was done in this span."""
        self.rows_forward = min(MAX_COUNT, self.rows_forward + added.rows_forward)
        self.rows_backward = min(MAX_COUNT, self.rows_backward + added.rows_backward)
        self.calls = min(MAX_COUNT, self.calls + added.calls)
        self.failures = min(MAX_COUNT, self.failures + added.failures)
        self.updates = min(MAX_COUNT, self.updates + added.updates)
        self.flop += added.flop

    def gauge(self, healths: dict[ExpertHealth, int], nodes_online: int) -> None:
        """One look at how many experts are in which state."""
        self.samples += 1
        self.nodes_online_sum += nodes_online
        for health, column in _HEALTH_COLUMN.items():
            setattr(self, column, getattr(self, column) + healths.get(health, 0))

    def latency(self, p50_ms: float | None, p95_ms: float | None) -> None:
        """One look at how long calls take."""
        if p50_ms is not None and p95_ms is not None:
            self.latency_samples += 1
            self.p50_sum += p50_ms
            self.p95_sum += p95_ms

    def spend(self, state: NodeHealth, seconds: float) -> None:
        """A node was in this state for so long; joining is no state to count."""
        if column := _STATE_COLUMN.get(state):
            setattr(self, column, getattr(self, column) + seconds)

    @property
    def beat(self) -> str:
        """The word for an hour of a node: what it was for half of it, or what troubled a twentieth of it; "" when
        unseen.
        """
        seen_s = self.online_s + self.degraded_s + self.stale_s + self.paused_s + self.offline_s
        if seen_s <= 0:
            return ""
        if self.offline_s > seen_s / 2:
            return "offline"
        if self.paused_s > seen_s / 2:
            return "paused"
        if self.stale_s + self.offline_s > seen_s / 20:
            return "stale"
        return "degraded" if self.degraded_s > seen_s / 20 else "online"


COLUMNS = tuple(each.name for each in dataclasses.fields(Rollup))


class RollupBook:
    """What one subject did since it was last written, by spans of the finest resolution."""

    def __init__(self, resolution_s: int) -> None:
        self.resolution_s = resolution_s
        self._open: dict[int, Rollup] = {}

    def at(self, now: float) -> Rollup:
        """The span that holds this moment."""
        return self._open.setdefault(int(now // self.resolution_s) * self.resolution_s, Rollup())

    def take(self) -> dict[int, Rollup]:
        """All spans since the last call, by their start; they may be continued by another part."""
        taken, self._open = self._open, {}
        return taken


class Heartbeats:
    """One word for each of the last 24 hours of a node."""

    def __init__(self) -> None:
        self._hours: dict[int, Rollup] = {}

    def spend(self, state: NodeHealth, now: float, seconds: float) -> None:
        hour = int(now // HOUR_S)
        self._hours.setdefault(hour, Rollup()).spend(state, seconds)
        for old in [each for each in self._hours if each <= hour - BEAT_HOURS]:
            del self._hours[old]

    def restore(self, start_s: int, rollup: Rollup) -> None:
        self._hours[start_s // HOUR_S] = rollup

    def words(self, now: float) -> tuple[str, ...]:
        """Oldest first, the running hour last."""
        hour = int(now // HOUR_S)
        return tuple(
            self._hours[each].beat if each in self._hours else "" for each in range(hour - BEAT_HOURS + 1, hour + 1)
        )
