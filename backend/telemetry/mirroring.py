"""Push the mirror to one trainer over its telemetry socket. Async; what is pushed is live/mirror.py's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from backend.live.mirror import MirrorHub, Subscriber
from learning_at_home.coordinator_messages import MIRROR_HEARTBEAT_S, MIRROR_VERSION
from learning_at_home.errors import NodeOverloaded

log = logging.getLogger(__name__)

SEND_TIMEOUT_S = 10.0  # for one message; a trainer that cannot take it in that time asks the DHT, and connects again
CLOSE_TRY_LATER = 1013
MIN_PAUSE_S = 0.02  # between messages: what happens at once travels together


@asynccontextmanager
async def mirrored_to(
    websocket: WebSocket, hub: MirrorHub, now: Callable[[], float], version: int
) -> AsyncIterator[None]:
    """While the context lasts, the trainer is sent what it asked for: nothing, or the mirror of this version.

    Where there are too many trainers already, this one has the DHT alone.
    """
    with contextlib.ExitStack() as stack:
        subscriber: Subscriber | None = None
        if version == MIRROR_VERSION:
            with contextlib.suppress(NodeOverloaded):
                subscriber = stack.enter_context(hub.subscribed())
        if subscriber is None:
            yield
            return
        sending = asyncio.create_task(_send(websocket, hub, subscriber, now))
        try:
            yield
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


async def _send(websocket: WebSocket, hub: MirrorHub, subscriber: Subscriber, now: Callable[[], float]) -> None:
    """Everything that waits, as fast as the trainer takes it; a word now and then when nothing does."""
    try:
        while not subscriber.closed:
            message = msgspec.json.encode(hub.take(subscriber, now())).decode()
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await websocket.send_text(message)
            await asyncio.sleep(MIN_PAUSE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MIRROR_HEARTBEAT_S):
                    await subscriber.wait()
    except TimeoutError:
        log.info("a trainer did not take its mirror in %.0f s and is let go", SEND_TIMEOUT_S)
        with contextlib.suppress(TimeoutError, WebSocketDisconnect, RuntimeError, OSError):
            async with asyncio.timeout(1.0):
                await websocket.close(CLOSE_TRY_LATER)
    except (WebSocketDisconnect, RuntimeError, OSError):
        pass  # it left while we wrote
