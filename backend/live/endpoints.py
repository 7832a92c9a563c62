"""The websocket of browsers: a snapshot, then numbered deltas, until either side goes. Async; the stream is
hub.py's.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec
from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from backend.http import ErrorAnswer, Json, TheCoordinator
from backend.live.hub import Delta, Reader, Snapshot
from backend.live.token_bucket import TokenBucket
from backend.telemetry.gate import let_in
from learning_at_home.errors import NodeOverloaded, UnknownProject

log = logging.getLogger(__name__)
router = APIRouter()

SEND_TIMEOUT_S = 10.0  # for one message; a browser that cannot take it in that time is asleep or gone
CHATTER_PER_S, CHATTER_BURST = 5.0, 50.0  # browsers have nothing to say but pings
CLOSE_TRY_LATER = 1013
CLOSE_GOING_AWAY = 1012  # service restart


@router.websocket("/api/v1/projects/{project_id}/live")
async def live(websocket: WebSocket, project_id: str, coordinator: TheCoordinator) -> None:
    async with let_in(websocket, coordinator) as admitted:
        if not admitted:
            return
        try:
            watched = coordinator.watched(project_id)
            reader = watched.hub.join(
                watched.current_view(coordinator.settings.url, coordinator.now()), coordinator.now()
            )
        except UnknownProject as error:
            await websocket.send_denial_response(Json(ErrorAnswer("UnknownProject", error.message), 404))
            return
        except NodeOverloaded as error:
            await websocket.send_denial_response(Json(ErrorAnswer("NodeOverloaded", error.message), 503))
            return
        try:
            await websocket.accept()
            await _converse(websocket, reader)
        finally:
            watched.hub.leave(reader)


async def _converse(websocket: WebSocket, reader: Reader) -> None:
    """Send and listen until one of the two ends."""
    sending = asyncio.create_task(_send(websocket, reader))
    listening = asyncio.create_task(_listen(websocket))
    try:
        await asyncio.wait((sending, listening), return_when=asyncio.FIRST_COMPLETED)
    finally:
        sending.cancel()
        listening.cancel()
        await asyncio.gather(sending, listening, return_exceptions=True)


async def _send(websocket: WebSocket, reader: Reader) -> None:
    """Everything the reader has, as fast as the browser takes it."""
    try:
        await _send_one(websocket, reader.snapshot)
        while not reader.cut:
            await reader.wait()
            if delta := reader.take():
                await _send_one(websocket, delta)
        async with asyncio.timeout(1.0):
            await websocket.close(CLOSE_TRY_LATER if reader.cut == "slow" else CLOSE_GOING_AWAY)
    except TimeoutError:
        log.info("a browser did not take its data in %.0f s and is let go", SEND_TIMEOUT_S)
    except (WebSocketDisconnect, RuntimeError, OSError):
        pass  # it left while we wrote


async def _send_one(websocket: WebSocket, message: Snapshot | Delta) -> None:
    async with asyncio.timeout(SEND_TIMEOUT_S):
        await websocket.send_text(msgspec.json.encode(message).decode())


async def _listen(websocket: WebSocket) -> None:
    """Read and ignore, so that the end is noticed; one that talks without pause is let go."""
    chatter = TokenBucket(CHATTER_PER_S, CHATTER_BURST)
    loop = asyncio.get_running_loop()
    while (await websocket.receive())["type"] != "websocket.disconnect":
        if not chatter.take(loop.time()):
            return
