"""Rollups in the database: parts are added up where they are written."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.live.rollups import COLUMNS, HOUR_S, RESOLUTIONS_S, Rollup
from backend.models.rollup import RollupModel
from backend.upsert import upsert

WHOLE_PROJECT = ""
# A chart of each span has a few hundred points; days are few enough to keep for ever.
KEPT_S: Mapping[int, float] = {10: 6 * 3_600.0, 60: 7 * 86_400.0, 3_600: 400 * 86_400.0}


class RollupRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(
        self, project_id: str, node: str, parts: Mapping[int, Rollup], resolutions_s: Iterable[int] = RESOLUTIONS_S
    ) -> None:
        """Add parts (by their start) to the spans that hold them, at each resolution."""
        rows = [
            {
                "project_id": project_id,
                "node": node,
                "resolution_s": resolution_s,
                "start_s": start_s // resolution_s * resolution_s,
                **dataclasses.asdict(part),
            }
            for start_s, part in parts.items()
            for resolution_s in resolutions_s
        ]
        await upsert(self._session, RollupModel, rows, add=COLUMNS)

    async def between(
        self, project_id: str, resolution_s: int, first_s: float, end_s: float, node: str = WHOLE_PROJECT
    ) -> list[tuple[int, Rollup]]:
        """Spans that start in [first_s, end_s), in order."""
        rows = await self._session.scalars(
            select(RollupModel)
            .where(
                RollupModel.project_id == project_id,
                RollupModel.node == node,
                RollupModel.resolution_s == resolution_s,
                RollupModel.start_s >= first_s,
                RollupModel.start_s < end_s,
            )
            .order_by(RollupModel.start_s)
        )
        return [(row.start_s, _to_rollup(row)) for row in rows]

    async def hours_of_nodes(self, project_id: str, since_s: float) -> dict[str, list[tuple[int, Rollup]]]:
        """The hourly spans of every node of a project, by the node's id."""
        rows = await self._session.scalars(
            select(RollupModel).where(
                RollupModel.project_id == project_id,
                RollupModel.node != WHOLE_PROJECT,
                RollupModel.resolution_s == HOUR_S,
                RollupModel.start_s >= since_s,
            )
        )
        by_node: dict[str, list[tuple[int, Rollup]]] = defaultdict(list)
        for row in rows:
            by_node[row.node].append((row.start_s, _to_rollup(row)))
        return by_node

    async def prune(self, now: float) -> None:
        """Forget spans that are finer than anyone looks back at."""
        for resolution_s, kept_s in KEPT_S.items():
            await self._session.execute(
                delete(RollupModel).where(RollupModel.resolution_s == resolution_s, RollupModel.start_s < now - kept_s)
            )


def _to_rollup(row: RollupModel) -> Rollup:
    return Rollup(**{column: getattr(row, column) for column in COLUMNS})
