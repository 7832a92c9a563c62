"""`lah coordinator`: read the flags, take the port, serve until told to stop.

Exit codes: 0 after a clean stop (SIGINT, SIGTERM), 1 when it cannot start; the reason is one line on standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Generator
from typing import Any

import uvicorn
from fastapi import FastAPI

from backend.app import create_app
from backend.command_line import Start, read
from backend.coordinator import run_coordinator
from backend.descriptors import max_connections, raise_descriptor_limit
from learning_at_home.clock import SystemClock
from learning_at_home.coordinator_messages import MAX_TELEMETRY_BYTES
from learning_at_home.errors import ConfigError, LearningAtHomeError
from learning_at_home.parent_watch import exit_when_stdin_closes

log = logging.getLogger(__name__)

EXIT_CANNOT_START = 1
GRACE_S = 1.0  # for answers that are under way when we stop; websockets are told at once
PING_S = 10.0  # a browser or node whose machine vanished is noticed in two of these


SAY_AGAIN_S = 60.0  # that descriptors are short


class Server(uvicorn.Server):
    """uvicorn without its signal handlers, which would end the process by the signal itself: we exit with 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def main(argv: list[str]) -> int:
    """The exit code of `lah coordinator`."""
    try:
        start = read(argv, os.environ)
        logging.basicConfig(
            level=start.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
        )
        raise_descriptor_limit()
        logging.getLogger("alembic").setLevel(logging.WARNING)
        with listen(start.settings.host, start.settings.port) as listener:
            port: int = listener.getsockname()[1]
            settings = dataclasses.replace(start.settings, port=port)
            asyncio.run(serve(dataclasses.replace(start, settings=settings), listener))
    except LearningAtHomeError as error:
        print(f"lah coordinator: {error}", file=sys.stderr)
        return EXIT_CANNOT_START
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A TCP socket of ours at this address. Raises ConfigError that says what to do when it is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"--host {host!r} is no address of this machine: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2_048)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"port {port} of {host} cannot be used ({error.strerror}); choose another with --port, or 0 for any"
        ) from error
    return listener


async def serve(start: Start, listener: socket.socket) -> None:
    """Run until SIGINT or SIGTERM. Raises ConfigError when it cannot start."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(LoopErrors())
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    if start.exit_with_parent:

        def stop() -> None:
            loop.call_soon_threadsafe(stopping.set)

        exit_when_stdin_closes(stop)
    async with run_coordinator(start.settings, SystemClock()) as coordinator:
        server = Server(server_config(create_app(coordinator)))
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(server.serve(sockets=[listener]))
            names = ", ".join(coordinator.projects) or "none yet; --project ID makes one"
            print(f"Learning@home coordinator: {start.settings.url}/  (projects: {names})", flush=True)
            waiting = tasks.create_task(stopping.wait())
            await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
            coordinator.stop()
            server.should_exit = True
            waiting.cancel()


def server_config(app: FastAPI) -> uvicorn.Config:
    """How we run uvicorn, here and in the tests."""
    return uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        ws="websockets-sansio",  # pauses reading after each message and waits for slow writers: nothing piles up
        ws_max_size=MAX_TELEMETRY_BYTES + 1024,  # a message a little too large gets our own refusal
        ws_ping_interval=PING_S,
        ws_ping_timeout=PING_S,
        timeout_graceful_shutdown=int(GRACE_S),
        limit_concurrency=max_connections(),
    )


class LoopErrors:
    """The loop's exception handler: that descriptors are short is one line a minute, not a traceback per connection."""

    def __init__(self) -> None:
        self._said_s = -SAY_AGAIN_S

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            loop.default_exception_handler(context)
        elif time.monotonic() - self._said_s >= SAY_AGAIN_S:
            self._said_s = time.monotonic()
            log.warning("new connections wait: this process may open no more files (ulimit -n)")
