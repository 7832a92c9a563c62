"""GET /api/v1/projects/{id}/events."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from backend.events.repository import EventRepository
from backend.events.schemas import EventsAnswer
from backend.http import Json, TheCoordinator, answers
from backend.live.swarm import EVENTS_SHOWN

router = APIRouter(prefix="/api/v1/projects/{project_id}", tags=["events"])


@router.get("/events", responses=answers(EventsAnswer))
async def events(
    project_id: str,
    coordinator: TheCoordinator,
    limit: Annotated[int, Query(ge=1, le=500)] = EVENTS_SHOWN,
    before: Annotated[int | None, Query(ge=0, le=1 << 53)] = None,
) -> Response:
    """What happened: the newest from memory, older ones from the database."""
    recent = [each for each in coordinator.watched(project_id).swarm.events if before is None or each.id < before]
    if len(recent) < limit:
        oldest = recent[-1].id if recent else before
        async with coordinator.database.reading() as session:
            recent += await EventRepository(session).latest(project_id, limit - len(recent), oldest)
    return Json(EventsAnswer(recent[:limit]))
