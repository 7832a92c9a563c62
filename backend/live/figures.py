"""Figures over a whole swarm: rates, latencies, and the regular look at them for charts and rollups. Pure."""

from __future__ import annotations

import statistics

from backend.live.node_memory import NodeMemory
from backend.live.rates import NO_RATES, Rates
from backend.live.swarm import LATENCY_IS_NEWS_S, ProjectSwarm
from dashboard.view import HEALTHS, NodeHealth

ALIVE: frozenset[NodeHealth] = frozenset({"online", "degraded", "draining", "paused", "stale"})


def rates(swarm: ProjectSwarm, now: float) -> Rates:
    """Per second, of all nodes together that ever answered us."""
    total = NO_RATES
    for node in swarm.answered:
        total += node.window.per_second(now)
    return total


def latency_ms(swarm: ProjectSwarm, now: float) -> tuple[float | None, float | None]:
    """Median of the nodes' medians, and the worst 95th percentile: what a trainer that asks many has to wait for."""
    known = [pair for node in swarm.nodes.values() if (pair := _latency_of(node, now)) is not None]
    if not known:
        return None, None
    return statistics.median(p50_ms for p50_ms, _ in known), max(p95_ms for _, p95_ms in known)


def sample(swarm: ProjectSwarm, now: float) -> None:
    """One more point on the charts, and one more look for the rollups."""
    counts = swarm.health_counts()
    current, (p50_ms, p95_ms) = rates(swarm, now), latency_ms(swarm, now)
    swarm.charts["throughput"].add(now, {"forward": current.rows_forward, "backward": current.rows_backward})
    swarm.charts["latency"].add(now, {"p50": p50_ms, "p95": p95_ms})
    swarm.charts["experts"].add(now, {health: float(counts.get(health, 0)) for health in HEALTHS[:-1]})
    rollup = swarm.rollups.at(now)
    rollup.gauge(counts, swarm.nodes_online)
    rollup.latency(p50_ms, p95_ms)
    for node in swarm.nodes.values():
        if (pair := _latency_of(node, now)) is not None:
            node.rollups.at(now).latency(*pair)


def _latency_of(node: NodeMemory, now: float) -> tuple[float, float] | None:
    """p50 and p95 as a living node told them lately."""
    told = node.telemetry
    if told is None or told.p50_ms is None or told.p95_ms is None or node.state not in ALIVE:
        return None
    return (told.p50_ms, told.p95_ms) if now - node.told_s < LATENCY_IS_NEWS_S else None
