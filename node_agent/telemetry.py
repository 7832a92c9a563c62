"""Report to the coordinator over a websocket, for as long as it can be reached. Async.

Every few seconds, or at once on a change of state. The coordinator may vanish at any time: this client tries again
for ever, with growing pauses, and nothing else of the node waits for it. What is sent are totals, so a lost message
loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from learning_at_home.coordinator_messages import (
    MAX_TELEMETRY_BYTES,
    SIGNING_PURPOSE,
    Accepted,
    Challenge,
    Hardware,
    Introduction,
    NodeTelemetry,
    Refused,
    decode_coordinator,
    encode,
    introduction_bytes,
)
from learning_at_home.errors import CoordinatorUnreachable, LearningAtHomeError, WireError, from_wire
from learning_at_home.identity import Identity
from learning_at_home.version import AGENT

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
HANDSHAKE_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 0.5  # for the coordinator's half of closing; nothing depends on it
LAST_WORD_TIMEOUT_S = 0.5


class TelemetryClient:
    """One node's telemetry. `snapshot` makes the message to send."""

    def __init__(
        self,
        coordinator: str,
        project: str,
        coordinator_public_key: str,
        identity: Identity,
        name: str,
        hardware: Hardware,
        snapshot: Callable[[], Awaitable[NodeTelemetry]],
    ) -> None:
        self._url = f"ws{coordinator.removeprefix('http')}/api/v1/projects/{project}/telemetry"
        self._project = project
        self._coordinator_public_key = coordinator_public_key
        self._identity = identity
        self._name = name
        self._hardware = hardware
        self._snapshot = snapshot
        self._changed = asyncio.Event()
        self._connection: ClientConnection | None = None
        self._problem = ""  # what was told last
        self._leaving = False

    def send_soon(self) -> None:
        """Something changed that people want to see now. On the loop's thread."""
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled, or until the connection ends while leaving. Raises nothing."""
        pause_s = FIRST_PAUSE_S
        while not self._leaving:
            try:
                async with connect(
                    self._url,
                    max_size=MAX_TELEMETRY_BYTES,
                    open_timeout=HANDSHAKE_TIMEOUT_S,
                    close_timeout=CLOSE_TIMEOUT_S,
                ) as socket:
                    interval_s = await self._introduce(socket)
                    pause_s = FIRST_PAUSE_S
                    await self._report(socket, interval_s)
            except (OSError, TimeoutError, WebSocketException, LearningAtHomeError) as error:
                self._tell(str(error) or type(error).__name__)
            finally:
                self._connection = None
            if not self._leaving:
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def leave(self) -> None:
        """Report the new state at once; from here on a connection that ends is not made again. On the loop's thread."""
        self._leaving = True
        self.send_soon()

    def _tell(self, problem: str) -> None:
        """Log what is wrong once, not at every attempt."""
        if problem != self._problem:
            self._problem = problem
            log.warning("no telemetry for now: %s; the node goes on serving", problem)

    async def send_last_word(self) -> None:
        """Tell the present state and close, if there is a connection; a coordinator that does not listen is left."""
        self.leave()
        connection = self._connection
        if connection is None:
            return
        try:
            async with asyncio.timeout(LAST_WORD_TIMEOUT_S):
                await connection.send(encode(await self._snapshot()))
                await connection.close()
        except (OSError, TimeoutError, WebSocketException):
            log.info("the coordinator did not hear that this node is leaving")
            connection.transport.abort()

    async def _introduce(self, socket: ClientConnection) -> float:
        """Answer the challenge; the seconds between reports. Raises CoordinatorUnreachable or what the refusal says."""
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            challenge = decode_coordinator(await socket.recv())
            if not isinstance(challenge, Challenge):
                raise WireError("the coordinator did not begin with a challenge")
            if challenge.coordinator_public_key != self._coordinator_public_key:
                raise CoordinatorUnreachable("another coordinator answers at this address: its key has changed")
            signed = introduction_bytes(challenge.nonce, self._project, "node", self._coordinator_public_key)
            introduction = Introduction(
                role="node",
                public_key=self._identity.public_key.hex(),
                signature=self._identity.sign(SIGNING_PURPOSE, signed).hex(),
                name=self._name,
                agent=AGENT[:80],
                hardware=self._hardware,
            )
            await socket.send(encode(introduction))
            verdict = decode_coordinator(await socket.recv())
        if isinstance(verdict, Refused):
            raise from_wire(verdict.code, verdict.message, peer="the coordinator")
        if not isinstance(verdict, Accepted):
            raise WireError("the coordinator neither accepted nor refused this node")
        return max(0.1, verdict.interval_s)

    async def _report(self, socket: ClientConnection, interval_s: float) -> None:
        """Send until the connection ends; what the coordinator says meanwhile is read and dropped."""
        self._connection = socket
        self._problem = ""
        try:
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(self._read(socket))
                while not reader.done():
                    self._changed.clear()
                    await socket.send(encode(await self._snapshot()))
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(interval_s):
                            await self._changed.wait()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _read(self, socket: ClientConnection) -> None:
        async for _ in socket:
            pass
        self._changed.set()  # the connection was closed: no need to wait for the next report
