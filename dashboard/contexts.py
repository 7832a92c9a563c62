"""What each template sees: one dataclass per page, made from a ProjectView by the function beside it.

Pure: no request, no clock. Templates only lay out; whatever must be counted, chosen or cut off is decided here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dashboard.drawing import MAX_DRAWN_CELLS, Panel, grid_panels, is_roomy
from dashboard.sorting import Order
from dashboard.view import HEALTHS, Cell, Contributor, Layer, NodeRow, ProjectHeader, ProjectSummary, ProjectView
from learning_at_home.expert_uid import Grid

MAX_LISTED_CELLS = 1_024  # rows of an experts table; beyond it the worst are listed and the rest counted
OVERVIEW_NODES = 12  # slowest first: the guilty one is on top, the rest are one click away
PAINLESS = ("serving", "vacant")  # a cell nobody ever hosted is not damage

NODE_COLUMNS = (
    "name", "state", "since_s", "experts", "rows_per_s", "p50_ms", "p95_ms", "staleness_p50", "staleness_max", "device",
    "load_percent", "memory_used_bytes", "temperature_c", "power_w", "flop_total", "rows_total", "failures",
    "last_heard_s",
)  # fmt: skip
CONTRIBUTOR_COLUMNS = (
    "name",
    "flop_total",
    "rows_total",
    "updates_total",
    "seconds_online",
    "first_seen_s",
    "last_heard_s",
)
EXPERT_COLUMNS = ("uid", "health", "node", "rows_per_s", "updates", "update_age_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What every page has. `section` is the entry of the menu; `live` pages open the websocket."""

    title: str
    section: str = ""
    project: ProjectHeader | None = None
    at_s: float | None = None
    live: bool = False


@dataclass(frozen=True, slots=True)
class CellRow:
    """One expert as a line of a table."""

    uid: str
    prefix: str
    index: int
    health: str
    node: str | None  # readable name
    node_id: str | None
    rows_per_s: float
    updates: int
    update_age_s: float | None


@dataclass(frozen=True, slots=True)
class LayerPicture:
    """One layer's grid: counts for the words and the legend, panels for drawing (none when it is too large)."""

    layer: Layer
    counts: Mapping[str, int]
    damaged: int  # neither serving nor vacant
    roomy: bool
    panels: tuple[Panel, ...]

    @property
    def summary(self) -> str:
        """`14 serving, 2 orphaned`: what a screen reader says for the picture."""
        return ", ".join(f"{number:,} {health}" for health, number in self.counts.items() if number) or "no cells"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectsPage(Page):
    """The coordinator's front page."""

    projects: tuple[ProjectSummary, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OverviewPage(Page):
    """From the whole to the guilty one: verdict, tiles, the grid of one layer, events, charts, the slowest nodes."""

    view: ProjectView
    layers: tuple[LayerPicture, ...]
    chosen: LayerPicture | None  # the layer whose grid is shown; None in a project without layers
    nodes: tuple[NodeRow, ...]
    never_joined: bool  # by any node, though there are layers


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsPage(Page):
    """Every layer's grid, what does not serve, and all experts."""

    view: ProjectView
    layers: tuple[LayerPicture, ...]
    damaged: tuple[CellRow, ...]
    damaged_total: int
    experts: tuple[CellRow, ...]
    experts_total: int
    order: Order


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesPage(Page):
    """All nodes with all that they report."""

    view: ProjectView
    nodes: tuple[NodeRow, ...]
    order: Order


@dataclass(frozen=True, slots=True, kw_only=True)
class ContributorsPage(Page):
    """What each node gave, as it reports it."""

    contributors: tuple[Contributor, ...]
    flop_total: float
    order: Order


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinPage(Page):
    """What a volunteer and a researcher type. `layer` stands in the researcher's example; None: there is none yet."""

    layer: Layer | None
    unhosted: int  # cells that no living node holds


@dataclass(frozen=True, slots=True, kw_only=True)
class NotFoundPage(Page):
    detail: str


def projects_page(summaries: Sequence[ProjectSummary]) -> ProjectsPage:
    return ProjectsPage(title="Projects", projects=tuple(summaries))


def overview_page(view: ProjectView, layer: str | None = None) -> OverviewPage:
    """`layer` is the prefix that the address names; an unknown one means the first."""
    pictures = tuple(layer_picture(each) for each in view.layers)
    chosen = next((picture for picture in pictures if picture.layer.prefix == layer), pictures[0] if pictures else None)
    return OverviewPage(
        title=view.project.title or view.project.id,
        section="overview",
        project=view.project,
        at_s=view.at_s,
        live=True,
        view=view,
        layers=pictures,
        chosen=chosen,
        nodes=view.nodes[:OVERVIEW_NODES],
        never_joined=not view.nodes and bool(view.layers),
    )


def experts_page(view: ProjectView, sort: str | None = None) -> ExpertsPage:
    names = {node.id: node.name for node in view.nodes}
    order = Order.parse(sort, EXPERT_COLUMNS)
    rows = [row for layer in view.layers for row in cell_rows(layer, names)]
    damaged = sorted((row for row in rows if row.health not in PAINLESS), key=lambda row: -HEALTHS.index(row.health))
    return ExpertsPage(
        title="Experts",
        section="experts",
        project=view.project,
        at_s=view.at_s,
        live=True,
        view=view,
        layers=tuple(layer_picture(layer) for layer in view.layers),
        damaged=tuple(damaged[:MAX_LISTED_CELLS]),
        damaged_total=len(damaged),
        experts=order.apply(rows)[:MAX_LISTED_CELLS],
        experts_total=len(rows),
        order=order,
    )


def nodes_page(view: ProjectView, sort: str | None = None) -> NodesPage:
    order = Order.parse(sort, NODE_COLUMNS)
    return NodesPage(
        title="Nodes",
        section="nodes",
        project=view.project,
        at_s=view.at_s,
        live=True,
        view=view,
        nodes=order.apply(view.nodes),
        order=order,
    )


def contributors_page(
    view: ProjectView, contributors: Sequence[Contributor], sort: str | None = None
) -> ContributorsPage:
    order = Order.parse(sort or "-flop_total", CONTRIBUTOR_COLUMNS)
    return ContributorsPage(
        title="Contributors",
        section="contributors",
        project=view.project,
        at_s=view.at_s,
        live=True,
        contributors=order.apply(contributors),
        flop_total=sum(each.flop_total for each in contributors),
        order=order,
    )


def join_page(view: ProjectView) -> JoinPage:
    return JoinPage(
        title="Join",
        section="join",
        project=view.project,
        at_s=view.at_s,
        live=True,
        layer=view.layers[0] if view.layers else None,
        unhosted=sum(cell.health in ("lost", "orphaned", "vacant") for layer in view.layers for cell in layer.cells),
    )


def not_found_page(detail: str = "") -> NotFoundPage:
    return NotFoundPage(title="Not found", detail=detail)


def layer_picture(layer: Layer) -> LayerPicture:
    found = Counter(cell.health for cell in layer.cells)
    return LayerPicture(
        layer=layer,
        counts={health: found[health] for health in HEALTHS},
        damaged=sum(number for health, number in found.items() if health not in PAINLESS),
        roomy=is_roomy(layer.grid),
        panels=grid_panels(layer) if len(layer.cells) <= MAX_DRAWN_CELLS else (),
    )


def cell_rows(layer: Layer, names: Mapping[str, str]) -> list[CellRow]:
    grid = Grid(layer.grid)
    return [
        CellRow(
            uid=str(grid.uid(layer.prefix, index)),
            prefix=layer.prefix,
            index=index,
            health=cell.health,
            node=node_name(cell, names),
            node_id=cell.node,
            rows_per_s=cell.rows_per_s,
            updates=cell.updates,
            update_age_s=cell.update_age_s,
        )
        for index, cell in enumerate(layer.cells)
    ]


def node_name(cell: Cell, names: Mapping[str, str]) -> str | None:
    """The readable name of a cell's host; eight digits of its id when the node is no longer listed."""
    return None if cell.node is None else names.get(cell.node, cell.node[:8])
