"""One telemetry socket from its challenge to its end. Async; decides nothing but who may speak.

Policy on rates: a peer that sends more than its share is read more slowly, so that its own socket fills up and nothing
gathers here; its totals come late then, and nothing is lost. Bytes and figures are shared by all sockets of an address.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from backend.coordinator import Coordinator
from backend.live.reachability import is_local
from backend.live.swarm import ProjectSwarm
from backend.live.token_bucket import TokenBucket
from backend.live.watcher import Watched
from backend.telemetry.gate import address_of
from backend.telemetry.introductions import check_introduction, new_challenge
from backend.telemetry.mirroring import mirrored_to
from backend.telemetry.plausibility import checked, introduced
from backend.telemetry.sockets import Allowance, Speaker
from learning_at_home.coordinator_messages import (
    Accepted,
    Introduction,
    NodeTelemetry,
    PeerMessage,
    Refused,
    Report,
    TrainerTelemetry,
    decode_peer,
    encode,
)
from learning_at_home.errors import CallTimeout, LearningAtHomeError, NodeOverloaded, PeerUnreachable, WireError
from learning_at_home.text import printable

log = logging.getLogger(__name__)

INTRODUCTION_TIMEOUT_S = 10.0
REFUSAL_TIMEOUT_S = 2.0
MESSAGES_PER_S, MESSAGES_BURST = 50.0, 200.0  # a trainer that reports every step of a small model stays below
CLOSED_IN_ORDER = (1000, 1001)  # a close frame of the peer's own will; a killed process sends none
CLOSE_REFUSED = 1008  # policy violation


async def serve_peer(websocket: WebSocket, coordinator: Coordinator, project_id: str) -> None:
    """Speak with one node or trainer until either side ends it. Whatever the peer sends, nothing is raised."""
    await websocket.accept()
    try:
        watched = coordinator.watched(project_id)
        swarm = watched.swarm
        challenge = new_challenge(coordinator.public_key, coordinator.clock.wall_s())
        await websocket.send_text(encode(challenge))
        introduction = await _introduction(websocket)
        public_key = check_introduction(introduction, challenge, project_id)
        introduction = introduced(introduction)
        _check_newcomer(websocket, coordinator, swarm, public_key, introduction)
        with coordinator.sockets.speaker(project_id, introduction.role, public_key) as speaker:
            if introduction.role == "node":
                await _serve_node(websocket, coordinator, swarm, public_key, introduction, speaker)
            else:
                await _serve_trainer(websocket, coordinator, watched, public_key, introduction, speaker)
    except WebSocketDisconnect:
        pass
    except LearningAtHomeError as error:
        log.info("a telemetry socket of project %s is refused: %s", printable(project_id, 40), printable(str(error)))
        await _refuse(websocket, error)


async def _serve_node(
    websocket: WebSocket,
    coordinator: Coordinator,
    swarm: ProjectSwarm,
    public_key: bytes,
    introduction: Introduction,
    speaker: Speaker,
) -> None:
    now = coordinator.now
    in_order = False
    node = swarm.node_introduced(
        public_key,
        introduction.name,
        introduction.agent,
        introduction.hardware,
        now(),
        place=_place(websocket, coordinator),
    )
    allowance = coordinator.sockets.allowance(address_of(websocket))
    try:
        await websocket.send_text(encode(Accepted()))
        async for message in _messages(websocket, coordinator, speaker):
            if not isinstance(message, NodeTelemetry):
                raise WireError("a node sends its telemetry and nothing else")
            swarm.node_told(node, message, now())
            await _rest(coordinator, allowance.experts.owe(coordinator.clock.monotonic_s(), len(node.experts)))
    except WebSocketDisconnect as end:
        in_order = end.code in CLOSED_IN_ORDER
    finally:
        if not speaker.replaced:
            swarm.node_socket_lost(node, now(), in_order=in_order)


async def _serve_trainer(
    websocket: WebSocket,
    coordinator: Coordinator,
    watched: Watched,
    public_key: bytes,
    introduction: Introduction,
    speaker: Speaker,
) -> None:
    now, swarm = coordinator.now, watched.swarm
    trainer = swarm.trainer_introduced(public_key, introduction.name, now())
    try:
        await websocket.send_text(encode(Accepted()))
        async with mirrored_to(websocket, watched.mirror, now, introduction.mirror):
            async for message in _messages(websocket, coordinator, speaker):
                if isinstance(message, Report):
                    swarm.trainer_reported(trainer, message, now())
                elif isinstance(message, TrainerTelemetry):
                    swarm.trainer_told(trainer, message, now())
                else:
                    raise WireError("a trainer sends its telemetry and reports, and nothing else")
    finally:
        if not speaker.replaced:
            swarm.trainer_socket_lost(trainer, now())


async def _introduction(websocket: WebSocket) -> Introduction:
    try:
        async with asyncio.timeout(INTRODUCTION_TIMEOUT_S):
            message = decode_peer(await _text(websocket))
    except TimeoutError as error:
        raise CallTimeout(f"no introduction came in {INTRODUCTION_TIMEOUT_S:.0f} s") from error
    if not isinstance(message, Introduction):
        raise WireError("the first message is an introduction")
    return message


async def _messages(websocket: WebSocket, coordinator: Coordinator, speaker: Speaker) -> AsyncIterator[PeerMessage]:
    """What the peer says, no faster than it may; ends with WebSocketDisconnect."""
    messages = TokenBucket(MESSAGES_PER_S, MESSAGES_BURST)
    allowance = coordinator.sockets.allowance(address_of(websocket))
    while True:
        text = await _text(websocket)
        if speaker.replaced:
            raise PeerUnreachable("another connection of the same key took the place of this one")
        now = coordinator.clock.monotonic_s()
        wait_s = max(messages.owe(now), allowance.num_bytes.owe(now, len(text)))
        message = checked(decode_peer(text))
        if isinstance(message, Introduction):
            raise WireError("a peer introduces itself once")
        yield message
        await _rest(coordinator, wait_s)


async def _rest(coordinator: Coordinator, wait_s: float) -> None:
    """Let the others have their turn, and wait so long; wakes early when we stop."""
    await asyncio.sleep(0)
    if wait_s > 0:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await coordinator.stopping.wait()


def _check_newcomer(
    websocket: WebSocket, coordinator: Coordinator, swarm: ProjectSwarm, public_key: bytes, introduction: Introduction
) -> None:
    """Raises NodeOverloaded when too many keys that nobody knows come from one address."""
    known = swarm.nodes if introduction.role == "node" else swarm.book.trainers
    if public_key.hex() not in known:
        allowance: Allowance = coordinator.sockets.allowance(address_of(websocket))
        if not allowance.new_keys.take(coordinator.clock.monotonic_s()):
            raise NodeOverloaded("too many new keys come from this address; try again later", retry_after_s=10.0)


def _place(websocket: WebSocket, coordinator: Coordinator) -> str:
    """Where the peer stands, as far as that says what it can reach.

    With a public address of our own, a socket of this machine is most often that of a proxy in front of us.
    """
    address = address_of(websocket)
    settings = coordinator.settings
    if settings.public_url and is_local(address) and not is_local(settings.own_address):
        return ""
    return address


async def _text(websocket: WebSocket) -> str:
    """The next text frame. Raises WireError on a binary one, WebSocketDisconnect at the end."""
    event = await websocket.receive()
    if event["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(event.get("code", 1005))
    text = event.get("text")
    if not isinstance(text, str):
        raise WireError("telemetry is JSON in text frames")
    return text


async def _refuse(websocket: WebSocket, error: LearningAtHomeError) -> None:
    """Say why, then close; a peer that does not read it is left."""
    if websocket.application_state != WebSocketState.CONNECTED or websocket.client_state != WebSocketState.CONNECTED:
        return
    with contextlib.suppress(TimeoutError, WebSocketDisconnect, RuntimeError, OSError):
        async with asyncio.timeout(REFUSAL_TIMEOUT_S):
            await websocket.send_text(encode(Refused(code=error.code, message=error.message[:1_000])))
            await websocket.close(CLOSE_REFUSED)
