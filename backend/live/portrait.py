"""A swarm as pages show it: ProjectView and ProjectSummary. Pure. Numbers are rounded to what a page shows, so that a
number that hardly moved makes no delta.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from backend.live.admission import shown
from backend.live.figures import latency_ms, rates
from backend.live.node_memory import CellKey, NodeMemory
from backend.live.rates import three_digits
from backend.live.run_memory import RunMemory
from backend.live.swarm import CellMemory, ProjectSwarm
from backend.live.verdict import judge
from dashboard.view import (
    Cell,
    ChartName,
    Contributor,
    Layer,
    NodeRow,
    ProjectHeader,
    ProjectSummary,
    ProjectView,
    Series,
    Tiles,
    Verdict,
)
from learning_at_home.project import LayerSpec

VACANT = Cell(health="vacant", load=0.0, updates=0, update_age_s=None, rows_per_s=0.0, node=None)
MAX_RUNS_SHOWN = 20


def header(swarm: ProjectSwarm, public_url: str) -> ProjectHeader:
    """What names the project."""
    record = swarm.record
    return ProjectHeader(record.id, record.title or record.id, record.description, f"{public_url}/p/{record.id}")


def summary(swarm: ProjectSwarm, public_url: str, now: float) -> ProjectSummary:
    """One line of the front page."""
    return ProjectSummary(
        header=header(swarm, public_url),
        verdict=verdict_of(swarm),
        nodes_online=swarm.nodes_online,
        experts_serving=swarm.health_counts().get("serving", 0),
        experts_total=swarm.experts_total,
        rows_per_s=three_digits(rates(swarm, now).rows),
    )


def view(swarm: ProjectSwarm, public_url: str, now: float) -> ProjectView:
    """The whole overview."""
    nodes = _ordered(shown(swarm.nodes.values()))
    return ProjectView(
        at_s=round(now, 3),
        project=header(swarm, public_url),
        verdict=verdict_of(swarm),
        tiles=tiles(swarm, now),
        layers=tuple(_layer(swarm, layer, now) for layer in swarm.record.layers),
        nodes=tuple(_node_row(node, three_digits(node.window.per_second(now).rows), now) for node in nodes),
        events=tuple(swarm.events),
        runs=tuple(run.row() for run in _latest_first(swarm.book.runs.values())[:MAX_RUNS_SHOWN]),
        charts=charts(swarm),
    )


def tiles(swarm: ProjectSwarm, now: float) -> Tiles:
    """The numbers of the first row."""
    current, (p50_ms, p95_ms) = rates(swarm, now), latency_ms(swarm, now)
    return Tiles(
        experts_serving=swarm.health_counts().get("serving", 0),
        experts_total=swarm.experts_total,
        rows_per_s=three_digits(current.rows),
        flop_per_s=three_digits(current.flop),
        p50_ms=_rounded(p50_ms),
        p95_ms=_rounded(p95_ms),
        failed_percent=_failed_percent(swarm, now),
        nodes_online=swarm.nodes_online,
        trainers_online=swarm.trainers_online,
        updates_per_s=three_digits(current.updates),
    )


def verdict_of(swarm: ProjectSwarm) -> Verdict:
    """The page's first line."""
    by_node = Counter(cell.host.name for cell in swarm.cells.values() if cell.health in ("lost", "orphaned"))
    served = {key[0] for key, cell in swarm.cells.items() if cell.health in ("serving", "degraded")}
    return judge(
        swarm.health_counts(),
        experts_total=swarm.experts_total,
        nodes_online=swarm.nodes_online,
        unserved_layers=tuple(layer.prefix for layer in swarm.record.layers if layer.prefix not in served),
        worst_node=by_node.most_common(1)[0][0] if by_node else None,
    )


def charts(swarm: ProjectSwarm) -> dict[ChartName, Series]:
    """The last five minutes of each chart, and the latest run's loss."""
    drawn: dict[ChartName, Series] = {}
    for name, chart in swarm.charts.items():
        x, lines = chart.columns()
        drawn[name] = Series(name=name, unit=chart.unit, x=x, lines=lines)
    drawn["loss"] = loss_series(swarm)
    return drawn


def loss_series(swarm: ProjectSwarm) -> Series:
    """The losses of the latest run over its steps, or what else it reports."""
    run = swarm.book.latest()
    names = run.drawn_lines() if run is not None else []
    if run is None or not names:
        return Series(name="loss", unit="", x=(), lines={"loss": ()})
    curves = {name: dict(run.curves[name].all_points()) for name in names}
    steps = sorted(set().union(*curves.values()))
    return Series(
        name="loss",
        unit="",
        x=tuple(float(step) for step in steps),
        lines={name: tuple(curve.get(step) for step in steps) for name, curve in curves.items()},
    )


def contributors(swarm: ProjectSwarm) -> list[Contributor]:
    """All nodes that gave anything, the most generous first."""
    known = [
        Contributor(
            node_id=node.id,
            name=node.name,
            flop_total=node.totals.flop,
            rows_total=node.totals.rows,
            updates_total=node.totals.updates,
            seconds_online=round(node.seconds_online, 1),
            first_seen_s=node.first_seen_s,
            last_heard_s=node.last_seen_s,
            online=node.state in ("online", "degraded"),
        )
        for node in swarm.answered
    ]
    return sorted(known, key=lambda each: (-each.flop_total, each.first_seen_s))


def _layer(swarm: ProjectSwarm, spec: LayerSpec, now: float) -> Layer:
    hosted = {cell: memory for (prefix, cell), memory in swarm.cells.items() if prefix == spec.prefix}
    per_cell = {cell: _rows_per_s((spec.prefix, cell), memory, now) for cell, memory in hosted.items()}
    busiest = max(per_cell.values(), default=0.0)
    return Layer(
        prefix=spec.prefix,
        grid=spec.grid,
        architecture=spec.architecture,
        hidden_size=spec.hidden_size,
        optimizer=spec.optimizer.name,
        cells=tuple(
            _cell((spec.prefix, cell), hosted[cell], per_cell[cell], busiest, now) if cell in hosted else VACANT
            for cell in range(spec.cells.num_cells)
        ),
    )


def _rows_per_s(key: CellKey, memory: CellMemory, now: float) -> float:
    expert = memory.host.experts.get(key)
    return expert.rows_per_s_at(now) if expert is not None else 0.0


def _cell(key: CellKey, memory: CellMemory, rows_per_s: float, busiest: float, now: float) -> Cell:
    if memory.health == "vacant":
        return VACANT
    expert = memory.host.experts.get(key)
    told = expert.told if expert is not None else None
    age_s = None
    if expert is not None and told is not None and told.update_age_s is not None:
        age_s = _coarse_age(told.update_age_s + now - expert.heard_s)
    return Cell(
        health=memory.health,
        load=round(rows_per_s / busiest, 2) if busiest > 0 else 0.0,
        updates=told.updates if told is not None else 0,
        update_age_s=age_s,
        rows_per_s=rows_per_s,
        node=memory.host.id,
    )


def _coarse_age(seconds: float) -> float:
    """Whole steps of about a tenth, so that a cell at rest is not sent again twice per second only to grow older."""
    step = 1 if seconds < 10 else 10 if seconds < 120 else 60 if seconds < 3_600 else 600
    return float(seconds // step * step)


def _ordered(nodes: Iterable[NodeMemory]) -> list[NodeMemory]:
    """Slowest first, those without a latency after them, offline last."""

    def place(node: NodeMemory) -> tuple[bool, float, str, str]:
        p95_ms = node.telemetry.p95_ms if node.telemetry is not None else None
        return node.state == "offline", -three_digits(p95_ms) if p95_ms is not None else 1.0, node.name, node.id

    return sorted(nodes, key=place)


def _latest_first(runs: Iterable[RunMemory]) -> list[RunMemory]:
    """Live ones before all others."""
    return sorted(runs, key=lambda run: (not run.live, -run.last_heard_s))


def _node_row(node: NodeMemory, rows_per_s: float, now: float) -> NodeRow:
    told = node.telemetry if node.state != "offline" else None
    device = told.device if told is not None else None
    return NodeRow(
        id=node.id,
        name=node.name,
        state=node.state,
        since_s=node.since_s,
        experts=len(node.hosted),
        rows_per_s=rows_per_s,
        p50_ms=_rounded(told.p50_ms) if told is not None else None,
        p95_ms=_rounded(told.p95_ms) if told is not None else None,
        staleness_p50=told.staleness_p50 if told is not None else None,
        staleness_max=told.staleness_max if told is not None else None,
        device=node.hardware.device_name or node.hardware.device,
        load_percent=_rounded(device.load_percent) if device is not None else None,
        memory_used_bytes=device.memory_used_bytes if device is not None else None,
        memory_total_bytes=(device.memory_total_bytes if device is not None else None)
        or node.hardware.memory_bytes
        or None,
        temperature_c=_rounded(device.temperature_c) if device is not None else None,
        power_w=_rounded(device.power_w) if device is not None else None,
        flop_total=node.totals.flop,
        rows_total=node.totals.rows,
        failures=node.totals.failures,
        first_seen_s=node.first_seen_s,
        last_heard_s=round(node.last_seen_s, 1),
        agent=node.agent,
        notice=node.telemetry.notice if node.telemetry is not None else "",
        beats=node.beats.words(now),
    )


def _failed_percent(swarm: ProjectSwarm, now: float) -> float | None:
    """Of the trainers' calls where there are trainers, else of what the nodes answered."""
    calls = failures = 0
    for trainer in swarm.book.trainers.values():
        if trainer.connected:
            calls, failures = calls + trainer.lately[0], failures + trainer.lately[1]
    if not calls:
        for node in swarm.answered:
            added = node.window.over_window() if node.evidence.heard_s and now - node.evidence.heard_s < 60 else None
            if added is not None:
                calls, failures = calls + added.calls, failures + added.failures
    return _rounded(min(100.0, 100.0 * failures / calls)) if calls else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else three_digits(value)
