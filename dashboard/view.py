"""What the pages show, as values: the contexts of the templates, and the snapshot and deltas that browsers get.

One shape serves both: a page is rendered from a `ProjectView`, and the websocket's snapshot is the same `ProjectView`
as JSON, so that a page without JavaScript and a live page cannot disagree. The dashboard asks for these through
`DashboardSource`; the backend answers. Times are UTC seconds; every number's unit is in its name.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

ExpertHealth = Literal["serving", "degraded", "stale", "lost", "orphaned", "vacant"]
HEALTHS: tuple[ExpertHealth, ...] = ("serving", "degraded", "stale", "lost", "orphaned", "vacant")
NodeHealth = Literal["joining", "online", "draining", "paused", "offline", "degraded", "stale"]
VerdictLevel = Literal["healthy", "degraded", "critical", "empty"]
ChartName = Literal["throughput", "latency", "experts", "loss"]


class Verdict(msgspec.Struct, frozen=True):
    """The page's first line: "Healthy." + "498 of 512 experts are serving on 31 nodes.", and what is wrong."""

    level: VerdictLevel
    word: str  # "Healthy."
    headline: str
    detail: str = ""


class Tiles(msgspec.Struct, frozen=True):
    """Six numbers. None: nothing to measure yet (shown as a dash)."""

    experts_serving: int
    experts_total: int
    rows_per_s: float  # forward and backward, as the nodes report
    flop_per_s: float
    p50_ms: float | None
    p95_ms: float | None
    failed_percent: float | None  # of calls, as the trainers see them where there are any, else the nodes
    nodes_online: int
    trainers_online: int
    updates_per_s: float


class Cell(msgspec.Struct, frozen=True, array_like=True):
    """One grid cell. JSON: an array in this order."""

    health: ExpertHealth
    load: float  # 0 to 1: rows per second relative to the busiest cell of the layer
    updates: int  # optimizer steps, as its host reports
    update_age_s: float | None
    rows_per_s: float
    node: str | None  # id of its node (hex public key), the last one when lost


class Layer(msgspec.Struct, frozen=True):
    """One layer's grid; `cells` in row-major order."""

    prefix: str
    grid: tuple[int, ...]
    architecture: str
    hidden_size: int
    optimizer: str
    cells: tuple[Cell, ...]


class NodeRow(msgspec.Struct, frozen=True):
    """One node. What it says of itself is reported, not verified."""

    id: str  # hex public key
    name: str
    state: NodeHealth
    since_s: float  # of the state
    experts: int
    rows_per_s: float
    p50_ms: float | None
    p95_ms: float | None
    staleness_p50: int | None  # updates that its experts made between a forward and its backward, lately
    staleness_max: int | None
    device: str  # "cpu" or "NVIDIA GeForce RTX 4070"
    load_percent: float | None  # of the device
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    temperature_c: float | None
    power_w: float | None
    flop_total: float  # contributed so far, reported
    rows_total: int
    failures: int
    first_seen_s: float
    last_heard_s: float
    agent: str
    notice: str
    beats: tuple[str, ...]  # the last 24 hours, one health word per hour, oldest first ("" before it was seen)


class Event(msgspec.Struct, frozen=True):
    """Something that happened, in words."""

    id: int  # grows
    at_s: float
    kind: Literal["joined", "left", "serving", "degraded", "stale", "lost", "orphaned", "run", "conflict", "notice"]
    subject: str  # shown in bold: "ffn0.6.11", "brisk-heron"
    text: str  # what follows it


class RunRow(msgspec.Struct, frozen=True):
    """One training run as its trainers report it."""

    name: str
    trainer: str  # readable name
    trainer_id: str
    step: int
    metrics: dict[str, float]
    started_s: float
    last_heard_s: float
    live: bool


class Series(msgspec.Struct, frozen=True):
    """One chart: `x` (UTC seconds; for "loss" steps) and one list of values for each line, None for a gap."""

    name: ChartName
    unit: str
    x: tuple[float, ...]
    lines: dict[str, tuple[float | None, ...]]


class Contributor(msgspec.Struct, frozen=True):
    """What one node gave in all, as it reports it (not verified)."""

    node_id: str
    name: str
    flop_total: float
    rows_total: int
    updates_total: int
    seconds_online: float
    first_seen_s: float
    last_heard_s: float
    online: bool


class ProjectHeader(msgspec.Struct, frozen=True):
    id: str
    title: str
    description: str
    url: str  # what volunteers and researchers type: "https://coordinator.example/p/digits"


class ProjectView(msgspec.Struct, frozen=True):
    """Everything that the overview shows; the other pages show parts of it."""

    at_s: float  # when this was true
    project: ProjectHeader
    verdict: Verdict
    tiles: Tiles
    layers: tuple[Layer, ...]
    nodes: tuple[NodeRow, ...]  # slowest first, offline last
    events: tuple[Event, ...]  # newest first, at most 50
    runs: tuple[RunRow, ...]  # live ones first
    charts: dict[ChartName, Series]  # the last 5 minutes (loss: the latest run)
    verified: bool = False  # figures of nodes and trainers are what they report


class ProjectSummary(msgspec.Struct, frozen=True):
    """One line of the list of projects (the coordinator's front page)."""

    header: ProjectHeader
    verdict: Verdict
    nodes_online: int
    experts_serving: int
    experts_total: int
    rows_per_s: float
    verified: bool = False  # what the nodes report


# Live: /api/v1/projects/{id}/live, JSON text frames from the server; what the browser sends is ignored but for pings.
#   {"type": "snapshot", "sequence": 7, "view": ProjectView}
#   {"type": "delta", "sequence": 8, "at_s": 1790000000.1, "change": Change}
# A delta's sequence is its predecessor's + 1; on a gap the browser closes and connects again. A slow reader's deltas
# are merged while they wait (at most one is queued); one that stays behind is disconnected. A delta comes at least
# every 2 s.


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """What differs from the state before. A field that is absent has not changed."""

    verdict: Verdict | None = None
    tiles: Tiles | None = None
    cells: dict[str, dict[str, Cell]] = {}  # layer prefix -> flat cell index (as text) -> cell
    layers: tuple[Layer, ...] | None = None  # only when the project record itself changed
    nodes: dict[str, NodeRow | None] = {}  # id -> row, null: gone
    order: tuple[str, ...] | None = None  # ids of the nodes, when their order changed
    events: tuple[Event, ...] = ()  # new ones, newest first
    runs: tuple[RunRow, ...] | None = None
    points: dict[str, tuple[float, dict[str, float | None]]] = {}  # chart -> (x, line -> value) to append
    charts: dict[str, Series] = {}  # charts that start anew: another run is the latest one


class DashboardSource(Protocol):
    """What the pages ask of the backend. Raises UnknownProject (404) for a project that does not exist."""

    async def projects(self) -> list[ProjectSummary]: ...

    async def view(self, project_id: str) -> ProjectView: ...

    async def contributors(self, project_id: str) -> list[Contributor]: ...

    async def series(self, project_id: str, chart: ChartName, span_s: float) -> Series: ...
