"""Views of swarms that are told what to be: healthy, damaged, empty, huge, hostile. The DashboardSource of our tests.

Pure but for `ScriptedSource`, whose coroutines only hand out what they were given.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass, field

from dashboard.view import (
    Cell,
    ChartName,
    Contributor,
    Event,
    Layer,
    NodeRow,
    ProjectHeader,
    ProjectSummary,
    ProjectView,
    RunRow,
    Series,
    Tiles,
    Verdict,
)
from learning_at_home.errors import UnknownProject
from learning_at_home.readable_names import readable_name

NOW_S = 1_790_000_000.0
HOSTILE = "<img src=x onerror=alert(1)>\"'&</script><b>"
URL = "https://coordinator.example/p/digits"
BEATS = ("online",) * 21 + ("degraded", "online", "online")


def node_id(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def node_row(number: int, *, at_s: float = NOW_S, **changes: object) -> NodeRow:
    """Node number `number`, online, on a GPU unless said otherwise."""
    dice = random.Random(number)
    values: dict[str, object] = {
        "id": node_id(number),
        "name": readable_name(bytes.fromhex(node_id(number))),
        "state": "online",
        "since_s": at_s - 4_000 * (number + 1),
        "experts": 16,
        "rows_per_s": 96.4 + 310 * number,
        "p50_ms": 212.0 / (number + 1),
        "p95_ms": 431.0 / (number + 1),
        "staleness_p50": number % 3,
        "staleness_max": 4 + number,
        "device": dice.choice(["cpu", "NVIDIA GeForce RTX 4070", "NVIDIA A10G"]),
        "load_percent": 97.0 - 7 * number,
        "memory_used_bytes": 7 << 30,
        "memory_total_bytes": 12 << 30,
        "temperature_c": 64.0,
        "power_w": 187.0,
        "flop_total": 4.1e16 / (number + 1),
        "rows_total": 48_213_004,
        "failures": 12 * number,
        "first_seen_s": at_s - 90_000,
        "last_heard_s": at_s - 1.5,
        "agent": "lah-node/0.1.0",
        "notice": "",
        "beats": BEATS,
    }
    return NodeRow(**{**values, **changes})  # type: ignore[arg-type]


def layer(
    prefix: str, grid: tuple[int, ...], nodes: tuple[NodeRow, ...], damage: dict[int, str] | None = None
) -> Layer:
    """A layer hosted by the given nodes in turn; all cells vacant when there are none."""
    dice = random.Random(prefix)
    total = math.prod(grid)
    cells = []
    for index in range(total):
        health = (damage or {}).get(index, "serving") if nodes else "vacant"
        alive = health in ("serving", "degraded")
        load = dice.random() ** 1.7 if alive else 0.0
        host = nodes[index * len(nodes) // total].id if nodes and health != "vacant" else None
        updates = 0 if health == "vacant" else 4_112 + dice.randrange(800)
        age_s = None if health == "vacant" else dice.random() * (30 if alive else 900)
        cells.append(Cell(health, round(load, 3), updates, age_s, round(load * 42, 2), host))  # type: ignore[arg-type]
    return Layer(prefix, grid, "ffn", 64, "adam lr 0.001", tuple(cells))


def charts(at_s: float = NOW_S, serving: int = 32, steps: int = 600) -> dict[ChartName, Series]:
    """Five minutes of charts, and a loss that falls."""
    dice = random.Random(1)
    x = tuple(at_s - 300 + 2.0 * i for i in range(151))
    wave = [10_000 + 2_000 * math.sin(i / 20) + 600 * dice.random() - (5_000 if 80 < i < 88 else 0) for i in range(151)]
    return {
        "throughput": Series(
            "throughput",
            "rows/s",
            x,
            {"forward": tuple(w * 0.55 for w in wave), "backward": tuple(w * 0.45 for w in wave)},
        ),
        "latency": Series(
            "latency",
            "ms",
            x,
            {"p50": tuple(40 + 4 * dice.random() for _ in x), "p95": tuple(110 + 20 * dice.random() for _ in x)},
        ),
        "experts": Series("experts", "experts", x, {"serving": tuple(float(serving) for _ in x)}),
        "loss": Series(
            "loss",
            "",
            tuple(float(30 * i) for i in range(steps)),
            {"loss": tuple(0.04 + 1.9 * math.exp(-5 * i / steps) + 0.05 * dice.random() for i in range(steps))},
        ),
    }


def events(at_s: float = NOW_S) -> tuple[Event, ...]:
    told = [
        ("lost", "ffn0.6.11", "lost with node quiet-otter", 12),
        ("joined", "vivid-lynx", "joined: RTX 4070, 24 experts", 100),
        ("degraded", "slow-crane", "p95 over 400 ms for 2 minutes", 185),
        ("run", "digits-7", "passed step 18,000", 351),
        ("stale", "mild-finch", "announcement is late", 440),
        ("left", "calm-badger", "finished and withdrew 16 experts", 588),
        ("conflict", "bold-ibis", "yields ffn0.2.2 to brisk-heron, whose claim is older", 722),
        ("orphaned", "ffn0.12.16", "orphaned: its node vanished and no checkpoint exists", 870),
        ("notice", "bold-ibis", "clock differs by 14 s", 3_725),
    ]
    return tuple(
        Event(len(told) - number, at_s - age, kind, subject, text)  # type: ignore[arg-type]
        for number, (kind, subject, text, age) in enumerate(told)
    )


def header(project: str = "digits") -> ProjectHeader:
    return ProjectHeader(project, project, "Handwritten digits, rotated and shifted.", URL)


def healthy_view(at_s: float = NOW_S, nodes: int = 8, grid: tuple[int, ...] = (4, 4)) -> ProjectView:
    """Two layers, all serving."""
    rows = tuple(node_row(number, at_s=at_s) for number in range(nodes))
    total = 2 * math.prod(grid)
    return ProjectView(
        at_s=at_s,
        project=header(),
        verdict=Verdict("healthy", "Healthy.", f"All {total} experts are serving on {nodes} nodes."),
        tiles=Tiles(total, total, 12_480.0, 3.42e12, 41.2, 118.4, 0.31, nodes, 3, 96.5),
        layers=(layer("ffn0", grid, rows), layer("ffn1", grid, rows)),
        nodes=rows,
        events=events(at_s),
        runs=(RunRow("digits-7", "lucky-owl", node_id(99), 18_240, {"loss": 0.0421}, at_s - 900, at_s - 1, True),),
        charts=charts(at_s, total),
    )


def damaged_view(at_s: float = NOW_S, grid: tuple[int, ...] = (16, 32)) -> ProjectView:
    """Every health and every state of a node at once."""
    damage = {203: "lost", 77: "stale", 78: "stale", 40: "degraded", 171: "degraded", 400: "orphaned"}
    damage |= dict.fromkeys(range(math.prod(grid) - 6, math.prod(grid)), "vacant")
    states = ["degraded", "stale", "joining", "draining", "paused", "online", "online", "online", "offline"]
    rows = tuple(node_row(number, at_s=at_s, state=state) for number, state in enumerate(states))
    sparse = {
        "p50_ms": None,
        "p95_ms": None,
        "staleness_p50": None,
        "staleness_max": None,
        "load_percent": None,
        "memory_used_bytes": None,
        "temperature_c": None,
    }
    rows = (
        *rows[:8],
        node_row(
            8,
            at_s=at_s,
            state="offline",
            rows_per_s=0.0,
            power_w=None,
            memory_total_bytes=None,
            last_heard_s=at_s - 7_400,
            notice="Its telemetry ended without a goodbye; two probes went unanswered.",
            beats=("online",) * 20 + ("offline",) * 4,
            **sparse,
        ),
    )
    total = 2 * math.prod(grid)
    return ProjectView(
        at_s=at_s,
        project=header(),
        verdict=Verdict(
            "degraded",
            "Degraded.",
            f"{total - 12:,} of {total:,} experts are serving on 8 nodes.",
            "2 stale on one node since 12:04, 1 orphaned with quiet-otter: it must be trained anew.",
        ),
        tiles=Tiles(total - 12, total, 12_480.0, 3.42e12, 41.2, 118.4, 4.61, 8, 3, 96.5),
        layers=(layer("ffn0", grid, rows, damage), layer("ffn1", (8, 8), rows, {5: "orphaned"})),
        nodes=rows,
        events=events(at_s),
        runs=(RunRow("digits-7", "lucky-owl", node_id(99), 18_240, {"loss": 0.0421}, at_s - 900, at_s - 1, True),),
        charts=charts(at_s, total - 12),
    )


def empty_view(at_s: float = NOW_S) -> ProjectView:
    """A project just made: nobody has come."""
    return ProjectView(
        at_s=at_s,
        project=header(),
        verdict=Verdict("empty", "Waiting.", "No node has joined yet."),
        tiles=Tiles(0, 32, 0.0, 0.0, None, None, None, 0, 0, 0.0),
        layers=(layer("ffn0", (4, 4), ()), layer("ffn1", (4, 4), ())),
        nodes=(),
        events=(),
        runs=(),
        charts={},
    )


def contributors(view: ProjectView) -> list[Contributor]:
    return [
        Contributor(
            row.id,
            row.name,
            row.flop_total,
            row.rows_total,
            91_204,
            86_400.0 * 3.2,
            row.first_seen_s,
            row.last_heard_s,
            row.state != "offline",
        )
        for row in view.nodes
    ]


@dataclass
class ScriptedSource:
    """Answers with whatever stands in `views`; a test changes them between two requests."""

    views: dict[str, ProjectView] = field(default_factory=dict)

    async def projects(self) -> list[ProjectSummary]:
        return [
            ProjectSummary(
                view.project,
                view.verdict,
                view.tiles.nodes_online,
                view.tiles.experts_serving,
                view.tiles.experts_total,
                view.tiles.rows_per_s,
            )
            for view in self.views.values()
        ]

    async def view(self, project_id: str) -> ProjectView:
        if project_id not in self.views:
            raise UnknownProject(f"no project {project_id!r} on this coordinator")
        return self.views[project_id]

    async def contributors(self, project_id: str) -> list[Contributor]:
        return contributors(await self.view(project_id))

    async def series(self, project_id: str, chart: ChartName, span_s: float) -> Series:
        view = await self.view(project_id)
        now = view.at_s
        x = tuple(now - span_s + span_s * i / 100 for i in range(101))
        lines = view.charts[chart].lines if chart in view.charts else {"value": ()}
        return Series(chart, "", x, {line: tuple(float(50 + i % 20) for i in range(101)) for line in lines})
