"""Decides from where a chart comes, and how fine it is: memory for the last minutes, rollups beyond."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from backend.coordinator import Coordinator
from backend.live.curves import CHART_SPAN_S
from backend.live.portrait import charts, loss_series
from backend.live.rates import three_digits
from backend.live.rollups import RESOLUTIONS_S, Rollup
from backend.series.repository import WHOLE_PROJECT, RollupRepository
from dashboard.view import ChartName, Series

MAX_POINTS = 1_500  # what a chart 1,500 pixels wide can show
MAX_SPAN_S = 10 * 366 * 86_400.0

Line = Callable[[Rollup, int], float | None]


def _mean(total: float, samples: int) -> float | None:
    return three_digits(total / samples) if samples else None


LINES: dict[ChartName, tuple[str, dict[str, Line]]] = {
    "throughput": (
        "rows/s",
        {
            "forward": lambda rollup, span_s: three_digits(rollup.rows_forward / span_s),
            "backward": lambda rollup, span_s: three_digits(rollup.rows_backward / span_s),
        },
    ),
    "latency": (
        "ms",
        {
            "p50": lambda rollup, _: _mean(rollup.p50_sum, rollup.latency_samples),
            "p95": lambda rollup, _: _mean(rollup.p95_sum, rollup.latency_samples),
        },
    ),
    "experts": (
        "experts",
        {
            "serving": lambda rollup, _: _mean(rollup.serving_sum, rollup.samples),
            "degraded": lambda rollup, _: _mean(rollup.degraded_sum, rollup.samples),
            "stale": lambda rollup, _: _mean(rollup.stale_sum, rollup.samples),
            "lost": lambda rollup, _: _mean(rollup.lost_sum, rollup.samples),
            "orphaned": lambda rollup, _: _mean(rollup.orphaned_sum, rollup.samples),
        },
    ),
}


async def series_of(coordinator: Coordinator, project_id: str, chart: ChartName, span_s: float) -> Series:
    """One chart over the last `span_s`. Raises UnknownProject. The loss is over steps and has no span."""
    swarm = coordinator.watched(project_id).swarm
    if chart == "loss":
        return loss_series(swarm)
    if span_s <= CHART_SPAN_S:
        return charts(swarm)[chart]
    now = coordinator.now()
    resolution_s = resolution_for(span_s)
    async with coordinator.database.reading() as session:
        spans = await RollupRepository(session).between(project_id, resolution_s, now - span_s, now, WHOLE_PROJECT)
    return to_series(chart, spans, resolution_s)


def resolution_for(span_s: float) -> int:
    """The finest resolution that needs no more than MAX_POINTS."""
    return next((each for each in RESOLUTIONS_S if span_s / each <= MAX_POINTS), RESOLUTIONS_S[-1])


def to_series(chart: ChartName, spans: Sequence[tuple[int, Rollup]], resolution_s: int) -> Series:
    """Rollups as lines; where spans are missing (the coordinator was down) the line has a gap."""
    unit, lines = LINES[chart]
    x: list[float] = []
    columns: dict[str, list[float | None]] = {name: [] for name in lines}
    before: int | None = None
    for start_s, rollup in spans:
        if before is not None and start_s - before > resolution_s:
            x.append(float(before + resolution_s))
            for column in columns.values():
                column.append(None)
        x.append(float(start_s))
        for name, line in lines.items():
            columns[name].append(line(rollup, resolution_s))
        before = start_s
    return Series(name=chart, unit=unit, x=tuple(x), lines={name: tuple(column) for name, column in columns.items()})
