"""Who hosts which cell: of the nodes that announce it, the one that lives; then the one whose claim goes first in the
library's order (layer_claims.rank_of). Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from backend.live.node_memory import CellKey, NodeMemory
from dashboard.view import NodeHealth
from learning_at_home.directory.layer_claims import rank_of

_STATE_RANK: dict[NodeHealth, int] = {
    "online": 0, "degraded": 0, "stale": 1, "draining": 2, "paused": 2, "joining": 3, "offline": 4
}  # fmt: skip

Rank = tuple[int, tuple[int, bytes]]


def choose_hosts(nodes: Iterable[NodeMemory]) -> dict[CellKey, NodeMemory]:
    """The host of every cell that anyone announces who ever answered us; a claim alone is nothing."""
    best: dict[CellKey, tuple[Rank, NodeMemory]] = {}
    for node in nodes:
        if not node.ever_answered:
            continue
        for key in node.cells:
            rank = _STATE_RANK[node.state], rank_of(node.claims[key], node.peer_id)
            if key not in best or rank < best[key][0]:
                best[key] = rank, node
    return {key: node for key, (_, node) in best.items()}
