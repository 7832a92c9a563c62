"""A coordinator for the client's tests: a real DHT peer, a real web server with a project's access and telemetry."""

from __future__ import annotations

import asyncio
import contextlib
import http
import os
import queue
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import msgspec
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from learning_at_home.client.loop_thread import LoopThread
from learning_at_home.coordinator_messages import (
    SIGNING_PURPOSE,
    Accepted,
    Challenge,
    Introduction,
    PeerMessage,
    Refused,
    decode_peer,
    encode,
    introduction_bytes,
)
from learning_at_home.dht.node import DhtNode
from learning_at_home.directory.announcement import Announcement
from learning_at_home.directory.publisher import publish, publish_project
from learning_at_home.directory.slot_rule import AnnouncementSlots
from learning_at_home.identity import Identity, verify
from learning_at_home.project import ProjectAccess, ProjectRecord

_T = TypeVar("_T")


class SmallCoordinator:
    """`said` has every telemetry message of introduced peers; `refuse` makes it refuse them."""

    def __init__(self, project: ProjectRecord, *, ahead_s: float = 0.0) -> None:
        self.project = project
        self.identity = Identity.generate()
        self.ahead_s = ahead_s
        self.said: queue.Queue[PeerMessage] = queue.Queue()
        self.refuse = False
        self.shown_key: str | None = None  # None: its own
        self.body: bytes | None = None  # what `access` answers instead of what is right
        self._loop = LoopThread("small-coordinator")
        self._stack = AsyncExitStack()
        self._server: Server | None = None
        self.port = 0
        self._run(self._start())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/p/{self.project.id}"

    @property
    def bootstrap(self) -> str:
        return self.dht.address

    def announce(self, identity: Identity, announcement: Announcement) -> None:
        """Put a node's announcement into the DHT, as the node would."""
        self._run(self._announce(identity, announcement))

    def publish_project(self) -> None:
        self._run(publish_project(self.dht, self.project))

    def stop_web(self) -> None:
        """The coordinator's web side dies; its port stays known."""
        self._run(self._stop_web())

    def start_web(self) -> None:
        self._run(self._start_web())

    def close(self) -> None:
        self._run(self._stop_web())
        self._run(self._stack.aclose())
        self._loop.close(5.0)

    def next_said(self, kind: type[_T], timeout_s: float = 10.0) -> _T:
        """The next message of this kind."""
        deadline = time.monotonic() + timeout_s
        while True:
            message = self.said.get(timeout=max(0.0, deadline - time.monotonic()))
            if isinstance(message, kind):
                return message

    def _run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return self._loop.submit(coroutine).result(20.0)

    async def _start(self) -> None:
        self.dht = await self._stack.enter_async_context(
            DhtNode(self.identity, "127.0.0.1", 0, slot_rule=AnnouncementSlots())
        )
        await self._start_web()

    async def _announce(self, identity: Identity, announcement: Announcement) -> None:
        async with DhtNode(identity, bootstrap=[self.dht.address], client_only=True) as node:
            assert await publish(node, self.project, announcement) > 0

    async def _start_web(self) -> None:
        self._server = await serve(self._telemetry, "127.0.0.1", self.port, process_request=self._access)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop_web(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    def _access(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == f"/api/v1/projects/{self.project.id}/telemetry":
            return None
        if request.path != f"/api/v1/projects/{self.project.id}/access":
            body = b'{"error": 503, "detail": "no such project"}'
            return Response(http.HTTPStatus.NOT_FOUND, "Not Found", Headers({"content-type": "application/json"}), body)
        access = ProjectAccess(
            record=self.project,
            coordinator_public_key=self.identity.public_key.hex(),
            bootstrap=(self.dht.address,),
            your_address="127.0.0.1",
            wall_s=time.time() + self.ahead_s,
            dashboard_url=self.url,
        )
        body = msgspec.json.encode(access) if self.body is None else self.body
        return Response(http.HTTPStatus.OK, "OK", Headers({"content-type": "application/json"}), body)

    async def _telemetry(self, socket: ServerConnection) -> None:
        nonce, key = os.urandom(32).hex(), self.shown_key or self.identity.public_key.hex()
        with contextlib.suppress(ConnectionClosed):
            await socket.send(encode(Challenge(nonce, key, time.time())))
            introduction = decode_peer(await socket.recv())
            assert isinstance(introduction, Introduction)
            signed = introduction_bytes(nonce, self.project.id, introduction.role, key)
            public_key = bytes.fromhex(introduction.public_key)
            assert verify(public_key, SIGNING_PURPOSE, signed, bytes.fromhex(introduction.signature))
            self.said.put(introduction)
            if self.refuse:
                await socket.send(encode(Refused(107, "not today")))
                return
            await socket.send(encode(Accepted(interval_s=0.1)))
            async for text in socket:
                self.said.put(decode_peer(text))
                await asyncio.sleep(0)
