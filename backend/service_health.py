"""GET /healthz and /readyz: for load balancers and service managers."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from backend.http import Json, TheCoordinator

router = APIRouter(tags=["service"])


@router.get("/healthz")
async def healthz() -> Response:
    """The process answers."""
    return Json({"status": "ok"})


@router.get("/readyz")
async def readyz(coordinator: TheCoordinator) -> Response:
    """It can do its work: the database answers."""
    try:
        async with coordinator.database.reading() as session:
            await session.execute(text("SELECT 1"))
    except (SQLAlchemyError, OSError):
        return Json({"status": "the database does not answer"}, 503)
    return Json({"status": "ok", "projects": len(coordinator.projects), "sockets": len(coordinator.sockets)})
