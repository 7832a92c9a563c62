"""Which nodes are remembered when there are more than fit: keys cost nothing, hosting does. Pure.

A stranger is a node that never answered a probe of ours. It is forgotten as soon as neither a socket nor an
announcement speaks for it.
"""

from __future__ import annotations

from collections.abc import Iterable

from backend.live.node_memory import NodeMemory

MAX_NODES = 20_000  # in memory, per project
MAX_STRANGERS = 2_000  # of these
MAX_JOINING_SHOWN = 50


def make_room(nodes: dict[str, NodeMemory], max_nodes: int = MAX_NODES, max_strangers: int = MAX_STRANGERS) -> bool:
    """Whether one more stranger may be taken in; where needed, another is forgotten for it.

    Of the strangers the one that is known for longest goes; of the others, that which gave least, and of these that
    which has been away for longest. A node that is here, or talks to us, stays.
    """
    if count_strangers(nodes.values()) >= max_strangers:
        silent = [node for node in nodes.values() if not node.ever_answered and not node.evidence.socket_open]
        return _forget(nodes, min(silent, key=lambda node: node.first_seen_s, default=None))
    if len(nodes) < max_nodes:
        return True
    away = [
        node
        for node in nodes.values()
        if not node.evidence.socket_open and (node.state == "offline" or not node.ever_answered)
    ]
    return _forget(nodes, min(away, key=_worth, default=None))


def count_strangers(nodes: Iterable[NodeMemory]) -> int:
    return sum(not node.ever_answered for node in nodes)


def is_forgettable(node: NodeMemory, now: float) -> bool:
    """Whether nothing but its key is known of it."""
    expires_s = node.evidence.expires_s
    return not (node.ever_answered or node.evidence.socket_open or (expires_s is not None and now < expires_s))


def shown(nodes: Iterable[NodeMemory]) -> list[NodeMemory]:
    """Those that pages and the API tell of: all that ever answered us, and of the strangers the latest that join."""
    known, joining = [], []
    for node in nodes:
        if node.ever_answered:
            known.append(node)
        elif node.state == "joining":
            joining.append(node)
    return known + sorted(joining, key=lambda node: -node.first_seen_s)[:MAX_JOINING_SHOWN]


def _worth(node: NodeMemory) -> tuple[bool, bool, float, int, float]:
    return node.ever_answered, bool(node.hosted), node.totals.flop, node.totals.rows, node.since_s


def _forget(nodes: dict[str, NodeMemory], node: NodeMemory | None) -> bool:
    if node is not None:
        del nodes[node.id]
    return node is not None
