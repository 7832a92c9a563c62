"""A coordinator's pages without a coordinator: the real routes and templates on a real uvicorn, fed by a script.

Async; everything runs on the test's own loop. The live websocket speaks the protocol of dashboard/view.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import msgspec
import uvicorn
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from starlette.exceptions import HTTPException
from starlette.responses import Response

from dashboard.routes import create_router, not_found_page
from dashboard.static_files import mount_static_files
from dashboard.view import Change, ProjectView
from tests.dashboard.scripted_source import ScriptedSource

HEARTBEAT_S = 0.5  # the backend's is at most 2 s


class ScriptedServer:
    """The app, and the hand that moves it: `push` sends a change to every open page."""

    def __init__(self, source: ScriptedSource) -> None:
        self.source = source
        self.sockets: set[WebSocket] = set()
        self.sequence = 0
        self.beating = True
        self.connections = 0
        self.refusing = False  # as a coordinator that is down: new connections are closed at once
        self.app = FastAPI()
        self.app.include_router(create_router(source))
        mount_static_files(self.app)
        self.app.add_exception_handler(404, _not_found)
        self.app.add_api_websocket_route("/api/v1/projects/{project_id}/live", self._live)

    async def push(self, change: Change, *, skip: int = 0, at_s: float | None = None) -> None:
        """One delta to all pages; `skip` numbers are left out, as if they had been lost on the way."""
        self.sequence += 1 + skip
        text = _encode({"type": "delta", "sequence": self.sequence, "at_s": at_s or time.time(), "change": change})
        for socket in list(self.sockets):
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await socket.send_text(text)

    async def cut(self) -> None:
        """Close every page's connection and take no new one until `refusing` is false again."""
        self.refusing = True
        for socket in list(self.sockets):
            await socket.close()

    async def heartbeat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if self.beating:
                await self.push(Change())

    async def _live(self, socket: WebSocket, project_id: str) -> None:
        if self.refusing:
            await socket.close()
            return
        await socket.accept()
        self.connections += 1
        view = msgspec.structs.replace(self.source.views[project_id], at_s=time.time())
        await socket.send_text(_encode({"type": "snapshot", "sequence": self.sequence, "view": view}))
        self.sockets.add(socket)
        try:
            while True:
                await socket.receive_text()
        except WebSocketDisconnect:
            pass
        finally:
            self.sockets.discard(socket)


@contextlib.asynccontextmanager
async def serve(source: ScriptedSource, port: int = 0) -> AsyncIterator[tuple[ScriptedServer, str]]:
    """The server and its address on 127.0.0.1. Leaving closes every connection."""
    scripted = ScriptedServer(source)
    config = uvicorn.Config(
        scripted.app, host="127.0.0.1", port=port, log_level="warning", lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    async with asyncio.TaskGroup() as tasks:
        # The server's own signal handlers would take Ctrl-C from pytest: serve on a socket we have bound, below them.
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup()
        main_loop = tasks.create_task(server.main_loop())
        heartbeat = tasks.create_task(scripted.heartbeat())
        try:
            bound = server.servers[0].sockets[0].getsockname()[1]
            yield scripted, f"http://127.0.0.1:{bound}"
        finally:
            heartbeat.cancel()
            server.should_exit = True
            await main_loop
            await server.shutdown()


def at_now(view: ProjectView) -> ProjectView:
    """The view as if it were true this second."""
    return msgspec.structs.replace(view, at_s=time.time())


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return not_found_page(request)


def _encode(message: object) -> str:
    return msgspec.json.encode(message).decode()
