"""Writes what the swarms remember into the database: one task, in batches, never a row per message. Async.

When the database cannot be written nothing is lost at first: what was taken waits, up to MAX_WAITING batches, the
oldest go; nodes and runs are written whole the next time. A batch that the database refuses for what is in it would be
refused for ever: it is dropped, logged and counted, and the others go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from backend.database import Database
from backend.events.repository import EventRepository
from backend.live.node_memory import NodeMemory
from backend.live.rollups import NODE_RESOLUTIONS_S, Rollup
from backend.live.run_memory import RunMemory
from backend.live.swarm import ProjectSwarm
from backend.nodes.repository import NodeRepository
from backend.runs.repository import RunRepository
from backend.series.repository import WHOLE_PROJECT, RollupRepository
from dashboard.view import Event

log = logging.getLogger(__name__)

WRITE_EVERY_S = 5.0
WRITE_NEWS_S = 1.0  # what is worth an event is soon on disk: after a crash of ours the page starts from there
NODE_ROLLUPS_EVERY_S = 60.0
PRUNE_EVERY_S = 3_600.0
MAX_WAITING = 120  # ten minutes
CANNOT_NOW = (OperationalError, InterfaceError, PoolTimeout, OSError)  # locked, full, gone: it may come back


@dataclass(slots=True)
class Batch:
    """What one project has to write."""

    project_id: str
    events: list[Event]
    rollups: dict[int, Rollup]
    node_rollups: dict[str, dict[int, Rollup]]
    nodes: list[NodeMemory] = field(default_factory=list)
    runs: list[RunMemory] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not (self.events or self.rollups or self.node_rollups or self.nodes or self.runs)


def take_batch(swarm: ProjectSwarm, *, with_node_rollups: bool) -> Batch:
    """What is unsaved, which is afterwards saved as far as the swarm knows."""
    events = list(swarm.unsaved_events)
    swarm.unsaved_events.clear()
    saved = swarm.answered
    # Taken of all, or the book of one that never answers would grow for as long as it stays.
    node_rollups = {node: node.rollups.take() for node in swarm.nodes.values()} if with_node_rollups else {}
    batch = Batch(
        project_id=swarm.record.id,
        events=events,
        rollups=swarm.rollups.take(),
        node_rollups={node.id: parts for node, parts in node_rollups.items() if node.ever_answered},
        nodes=[node for node in saved if node.unsaved or with_node_rollups],
        runs=swarm.book.take_unsaved(),
    )
    for node in batch.nodes:
        node.unsaved = False
    return batch


async def write_batch(database: Database, batch: Batch) -> None:
    """All of one batch, or nothing."""
    async with database.writing() as session:
        await NodeRepository(session).save(batch.project_id, batch.nodes)
        await EventRepository(session).add(batch.project_id, batch.events)
        rollups = RollupRepository(session)
        await rollups.add(batch.project_id, WHOLE_PROJECT, batch.rollups)
        for node_id, parts in batch.node_rollups.items():
            await rollups.add(batch.project_id, node_id, parts, NODE_RESOLUTIONS_S)
        await RunRepository(session).save(batch.project_id, batch.runs)


class Recorder:
    """The one writer."""

    def __init__(
        self, database: Database, swarms: Callable[[], Iterable[ProjectSwarm]], now: Callable[[], float]
    ) -> None:
        self._database = database
        self._swarms = swarms
        self._now = now
        self._waiting: deque[Batch] = deque(maxlen=MAX_WAITING)
        self.dropped = 0  # batches that the database refused for what is in them
        self._flushed_s = self._node_rollups_s = self._pruned_s = now()

    async def run(self) -> None:
        """Until cancelled; `flush` once more afterwards."""
        while True:
            await asyncio.sleep(WRITE_NEWS_S)
            if self._now() - self._flushed_s < WRITE_EVERY_S and not self._has_news():
                continue
            await self.flush()
            if self._now() - self._pruned_s >= PRUNE_EVERY_S:
                self._pruned_s = self._now()
                await self._prune()

    async def flush(self, *, last: bool = False) -> None:
        """Write what is unsaved now."""
        self._flushed_s = self._now()
        with_nodes = last or self._now() - self._node_rollups_s >= NODE_ROLLUPS_EVERY_S
        if with_nodes:
            self._node_rollups_s = self._now()
        for swarm in self._swarms():
            batch = take_batch(swarm, with_node_rollups=with_nodes)
            if not batch.is_empty:
                self._waiting.append(batch)
        while self._waiting:
            batch = self._waiting[0]
            try:
                await write_batch(self._database, batch)
            except CANNOT_NOW as error:
                log.warning("the database cannot be written, %d batches wait: %s", len(self._waiting), error)
                for run in batch.runs:
                    run.unsaved = True
                    for curve in run.curves.values():
                        curve.mark_unsaved()
                return
            except Exception:
                self.dropped += 1
                log.exception("the database refuses a batch of project %s, which is dropped", batch.project_id)
            self._waiting.popleft()

    def _has_news(self) -> bool:
        return any(swarm.unsaved_events for swarm in self._swarms())

    async def _prune(self) -> None:
        try:
            async with self._database.writing() as session:
                await RollupRepository(session).prune(self._now())
                await RunRepository(session).prune(self._now())
                for swarm in self._swarms():
                    await EventRepository(session).prune(swarm.record.id, self._now())
        except (SQLAlchemyError, OSError) as error:
            log.warning("old rows cannot be deleted: %s", error)
