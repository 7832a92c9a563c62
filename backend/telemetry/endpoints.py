"""The websocket of nodes and trainers; the conversation itself is session.py's."""

from __future__ import annotations

from fastapi import APIRouter, WebSocket

from backend.http import TheCoordinator
from backend.telemetry.gate import let_in
from backend.telemetry.session import serve_peer

router = APIRouter()


@router.websocket("/api/v1/projects/{project_id}/telemetry")
async def telemetry(websocket: WebSocket, project_id: str, coordinator: TheCoordinator) -> None:
    async with let_in(websocket, coordinator) as admitted:
        if admitted:
            await serve_peer(websocket, coordinator, project_id)
