"""Nodes in the database, to and from memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.live.admission import MAX_NODES
from backend.live.node_memory import NodeMemory
from backend.live.rates import Counters
from backend.models.node import NodeModel
from backend.upsert import upsert
from dashboard.view import NodeHealth
from learning_at_home.coordinator_messages import Hardware
from learning_at_home.directory.announcement import Announcement
from learning_at_home.errors import WireError

STATES: frozenset[NodeHealth] = frozenset({"joining", "online", "draining", "paused", "offline", "degraded", "stale"})


class NodeRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def all_of(self, project_id: str, now: float, limit: int = MAX_NODES) -> list[NodeMemory]:
        """The nodes of a project as they were last written: those that were seen last, where there are too many."""
        rows = await self._session.scalars(
            select(NodeModel)
            .where(NodeModel.project_id == project_id)
            .order_by(NodeModel.last_seen_s.desc())
            .limit(limit)
        )
        return [_to_memory(row, now) for row in rows]

    async def save(self, project_id: str, nodes: Iterable[NodeMemory]) -> None:
        await upsert(self._session, NodeModel, [_to_row(project_id, node) for node in nodes])


def _to_row(project_id: str, node: NodeMemory) -> dict[str, object]:
    started_s, counted = node.process or (None, Counters())
    return {
        "project_id": project_id,
        "public_key": node.id,
        "name": node.name,
        "agent": node.agent,
        "hardware": msgspec.json.encode(node.hardware).decode(),
        "first_seen_s": node.first_seen_s,
        "last_seen_s": node.last_seen_s,
        "state": node.state,
        "state_since_s": node.since_s,
        "seconds_online": node.seconds_online,
        **dataclasses.asdict(node.totals),
        "process_started_s": started_s,
        "process_counted": msgspec.json.encode(counted).decode(),
        "announcement": node.announcement.to_bytes() if node.announcement is not None else None,
    }


def _to_memory(row: NodeModel, now: float) -> NodeMemory:
    node = NodeMemory(bytes.fromhex(row.public_key), now)
    node.name, node.agent = row.name, row.agent
    node.hardware = msgspec.json.decode(row.hardware, type=Hardware)
    node.first_seen_s, node.last_seen_s, node.since_s = row.first_seen_s, row.last_seen_s, row.state_since_s
    node.told_s = row.last_seen_s
    node.state = next((state for state in STATES if state == row.state), "offline")
    node.seconds_online = row.seconds_online
    node.totals = Counters(row.rows_forward, row.rows_backward, row.updates, row.calls, row.failures, row.flop)
    if row.process_started_s is not None:
        node.restored = (row.process_started_s, msgspec.json.decode(row.process_counted, type=Counters))
    if row.announcement is not None:
        try:
            node.announcement = Announcement.from_bytes(row.announcement)
        except WireError:  # written by another version: the node announces itself again in seconds
            node.announcement = None
    return node
