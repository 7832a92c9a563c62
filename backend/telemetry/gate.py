"""The door of every websocket: no page of a stranger, and not too many sockets of one address. Async."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

from starlette.websockets import WebSocket

from backend.coordinator import Coordinator
from backend.http import ErrorAnswer, Json
from backend.telemetry.sockets import is_same_origin
from learning_at_home.errors import NodeOverloaded


@asynccontextmanager
async def let_in(websocket: WebSocket, coordinator: Coordinator) -> AsyncIterator[bool]:
    """Whether the socket may be accepted; if not, it has been told why by an HTTP status."""
    headers = websocket.headers
    if not is_same_origin(headers.get("origin"), headers.get("host"), coordinator.settings.url):
        await websocket.send_denial_response(
            Json(ErrorAnswer("ForeignOrigin", "pages of other sites may not connect here"), 403)
        )
        yield False
        return
    address = address_of(websocket)
    with ExitStack() as stack:
        try:
            stack.enter_context(coordinator.sockets.slot(address, coordinator.settings.max_sockets_per_address))
        except NodeOverloaded as error:
            await websocket.send_denial_response(Json(ErrorAnswer("NodeOverloaded", error.message), 429))
            yield False
            return
        yield True


def address_of(websocket: WebSocket) -> str:
    """The other side's address; "" for a socket without one."""
    return websocket.client.host if websocket.client is not None else ""
