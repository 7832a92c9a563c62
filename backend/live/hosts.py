"""Who hosts which cell: of the nodes that announce it, the one that lives; then the older claim; then the lower node
id. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from backend.live.node_memory import CellKey, NodeMemory
from dashboard.view import NodeHealth
from learning_at_home.project import ProjectRecord

_RANK: dict[NodeHealth, int] = {
    "online": 0, "degraded": 0, "stale": 1, "draining": 2, "paused": 2, "joining": 3, "offline": 4
}  # fmt: skip


def claims_in(node: NodeMemory, record: ProjectRecord) -> Iterator[tuple[CellKey, int]]:
    """The cells of this project's grids that a node announces, with the time of the claim (ms); denied ones left
    out.
    """
    if node.announcement is None:
        return
    sizes = {layer.prefix: layer.cells.num_cells for layer in record.layers}
    for claim in node.announcement.claims:
        size = sizes.get(claim.prefix, 0)
        for first, end in claim.spans:
            for cell in range(first, min(end, size)):
                if (claim.prefix, cell) not in node.denied:
                    yield (claim.prefix, cell), claim.claimed_ms


def choose_hosts(nodes: Iterable[NodeMemory], record: ProjectRecord) -> dict[CellKey, NodeMemory]:
    """The host of every cell that anyone announces."""
    best: dict[CellKey, tuple[int, int, bytes, NodeMemory]] = {}
    for node in nodes:
        for key, claimed_ms in claims_in(node, record):
            claim = (_RANK[node.state], claimed_ms, node.peer_id, node)
            if key not in best or claim[:3] < best[key][:3]:
                best[key] = claim
    return {key: claim[3] for key, claim in best.items()}
