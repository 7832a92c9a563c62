"""Events in the database."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.models.event import EventModel
from backend.upsert import upsert
from dashboard.view import Event

KEPT_S = 90 * 86_400.0
KEPT_PER_PROJECT = 20_000


class EventRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def last_id(self) -> int:
        """The highest id of all projects; 0 when there is none."""
        return await self._session.scalar(select(func.max(EventModel.id))) or 0

    async def latest(self, project_id: str, limit: int, before_id: int | None = None) -> list[Event]:
        """Newest first."""
        query = select(EventModel).where(EventModel.project_id == project_id)
        if before_id is not None:
            query = query.where(EventModel.id < before_id)
        rows = await self._session.scalars(query.order_by(EventModel.id.desc()).limit(limit))
        return [
            msgspec.convert(
                {"id": row.id, "at_s": row.at_s, "kind": row.kind, "subject": row.subject, "text": row.text}, Event
            )
            for row in rows
        ]

    async def add(self, project_id: str, events: Iterable[Event]) -> None:
        await upsert(
            self._session,
            EventModel,
            [{"project_id": project_id, **msgspec.structs.asdict(event)} for event in events],
        )

    async def prune(self, project_id: str, now: float) -> None:
        """Forget what is older than anyone looks, and what a busy project has too many of."""
        first_kept = (
            select(EventModel.id)
            .where(EventModel.project_id == project_id)
            .order_by(EventModel.id.desc())
            .offset(KEPT_PER_PROJECT)
            .limit(1)
        )
        limit_id = await self._session.scalar(first_kept)
        old = EventModel.at_s < now - KEPT_S
        await self._session.execute(
            delete(EventModel).where(
                EventModel.project_id == project_id, old if limit_id is None else old | (EventModel.id <= limit_id)
            )
        )
