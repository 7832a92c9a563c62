"""A peer's websocket to its coordinator: introduced by signature, kept for as long as the peer lives. Async.

Losing the coordinator disturbs nobody: the link connects again, for ever, with growing pauses. What it carries are
totals and reports that its owner keeps until they are sent, so that a lost connection loses nothing. Knows nothing of
what is told, nor of who tells it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from learning_at_home.coordinator_access import is_loopback
from learning_at_home.coordinator_messages import (
    MAX_NAME_CHARS,
    MAX_TELEMETRY_BYTES,
    MIRROR_VERSION,
    SIGNING_PURPOSE,
    Accepted,
    Challenge,
    Hardware,
    Introduction,
    Mirrored,
    PeerMessage,
    Refused,
    decode_coordinator,
    encode,
    introduction_bytes,
)
from learning_at_home.errors import CoordinatorUnreachable, LearningAtHomeError, WireError, from_wire
from learning_at_home.identity import Identity
from learning_at_home.text import printable
from learning_at_home.version import AGENT

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0  # a coordinator that is back is seen to be back within the longest
LASTING_S = 5.0  # a connection that ends sooner is no success: the pauses go on growing
HANDSHAKE_TIMEOUT_S = 10.0
SEND_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 0.5  # for the coordinator's half of closing; nothing depends on it
MIN_INTERVAL_S, MAX_INTERVAL_S = 0.05, 60.0  # of what a coordinator may ask for
MAX_PROBLEM_CHARS = 400
REST_PER_MESSAGE_S, REST_PER_RECORD_S = 1e-3, 1e-4  # between mirrored messages: a flood leaves the loop to others

Send = Callable[[PeerMessage], Awaitable[None]]


class MirrorListener(Protocol):
    """What takes in the coordinator's mirror: directory.mirror.Mirror."""

    def opened(self, coordinator_key: bytes) -> None: ...

    def heard(self, message: Mirrored) -> None:
        """Raises WireError when the connection is to be given up."""
        ...

    def lost(self) -> None: ...


async def _nothing(send: Send) -> None:
    return None


def _untold(problem: str) -> None:
    return None


@dataclass(slots=True, eq=False)
class CoordinatorLink:
    """`url` is the telemetry's websocket. Used on one event loop; `run` makes it live."""

    url: str
    project: str
    role: Literal["node", "trainer"]
    identity: Identity
    name: str
    telemetry: Callable[[], Awaitable[PeerMessage]]
    coordinator_key: str | None  # hex; None: whoever answers at the url, known by TLS alone
    hardware: Hardware = Hardware()  # noqa: RUF009 - frozen
    flush: Callable[[Send], Awaitable[None]] = _nothing  # send what else waits; called whenever the link is woken
    on_problem: Callable[[str], None] = _untold  # told once per problem, not at every attempt
    mirror: MirrorListener | None = None
    _due: asyncio.Event = field(default_factory=asyncio.Event)
    _left: asyncio.Event = field(default_factory=asyncio.Event)  # a connection that ends is not made again
    _ended: asyncio.Event = field(default_factory=asyncio.Event)  # the last connection has
    _telemetry_due: bool = False
    _closing: bool = False
    _problem: str = ""
    _in_session: bool = False  # from an attempt to connect to its end
    _socket: ClientConnection | None = None  # after the introduction
    _said_all: bool = False

    def wake(self) -> None:
        """Something waits to be flushed."""
        self._due.set()

    def send_soon(self) -> None:
        """Something changed that people want to see now: send telemetry."""
        self._telemetry_due = True
        self._due.set()

    def leave(self) -> None:
        """Report the new state at once; from here on a connection that ends is not made again."""
        self._left.set()
        self.send_soon()

    async def last_word(self, timeout_s: float) -> bool:
        """Leave: send telemetry and what waits, then close. Whether the coordinator had all of it in time.

        A connection that is being made is waited for; a coordinator that does not listen is left. `run` does the
        sending: it must still be running.
        """
        await asyncio.sleep(0)  # a `run` that was started at this moment begins
        self._closing = True
        self.leave()
        if not self._in_session:
            return False
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError:
            if self._socket is not None:
                self._socket.transport.abort()
            return False
        return self._said_all

    async def run(self) -> None:
        """Until cancelled, or until the connection ends after leaving. Raises nothing."""
        loop = asyncio.get_running_loop()
        pause_s = FIRST_PAUSE_S
        try:
            while not self._left.is_set():
                started_s = loop.time()
                self._in_session = True
                try:
                    await self._session()
                except (OSError, TimeoutError, WebSocketException, LearningAtHomeError) as error:
                    self._tell(printable(str(error), MAX_PROBLEM_CHARS) or type(error).__name__)
                finally:
                    self._in_session, self._socket = False, None
                if loop.time() - started_s >= LASTING_S:
                    pause_s = FIRST_PAUSE_S
                await _wait(self._left, pause_s * random.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        finally:
            self._ended.set()

    def _tell(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            self.on_problem(problem)

    async def _session(self) -> None:
        # A proxy never leads to this machine, whatever the environment says.
        proxy: dict[str, Any] = {"proxy": None} if is_loopback(self.url) else {}
        async with connect(
            self.url,
            open_timeout=HANDSHAKE_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
            max_size=MAX_TELEMETRY_BYTES,
            user_agent_header=AGENT,
            **proxy,
        ) as socket:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                interval_s, key = await self._introduce(socket)
            self._socket = socket
            self._problem = ""
            log.info("reporting to the coordinator at %s", self.url)
            if self.mirror is not None:
                self.mirror.opened(key)
            try:
                await self._report(socket, interval_s)
            finally:
                if self.mirror is not None:
                    self.mirror.lost()

    async def _introduce(self, socket: ClientConnection) -> tuple[float, bytes]:
        """Answer the challenge: the seconds between telemetry, and the coordinator's key.

        Raises WireError, CoordinatorUnreachable or what the refusal says.
        """
        challenge = decode_coordinator(await socket.recv())
        if not isinstance(challenge, Challenge):
            raise WireError("the coordinator did not begin with a challenge")
        key = challenge.coordinator_public_key
        if self.coordinator_key is not None and key != self.coordinator_key:
            raise CoordinatorUnreachable("another coordinator answers at this address: its key has changed")
        signed = introduction_bytes(challenge.nonce, self.project, self.role, key)
        introduction = Introduction(
            role=self.role,
            public_key=self.identity.public_key.hex(),
            signature=self.identity.sign(SIGNING_PURPOSE, signed).hex(),
            name=self.name[:MAX_NAME_CHARS],
            agent=AGENT[:MAX_NAME_CHARS],
            hardware=self.hardware,
            mirror=MIRROR_VERSION if self.mirror is not None else 0,
        )
        await socket.send(encode(introduction))
        verdict = decode_coordinator(await socket.recv())
        if isinstance(verdict, Refused):
            raise from_wire(verdict.code, verdict.message, peer="the coordinator")
        if not isinstance(verdict, Accepted):
            raise WireError("the coordinator answered an introduction with something else")
        return min(MAX_INTERVAL_S, max(MIN_INTERVAL_S, verdict.interval_s)), bytes.fromhex(key)

    async def _report(self, socket: ClientConnection, interval_s: float) -> None:
        """Send until the connection ends, or the last word is said.

        Raises CoordinatorUnreachable when it was cut, WireError when the coordinator's mirror cannot be right.
        """
        loop = asyncio.get_running_loop()

        async def send(message: PeerMessage) -> None:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await socket.send(encode(message))

        reader = asyncio.create_task(self._read(socket))
        self._telemetry_due = True
        next_telemetry_s = loop.time()
        try:
            while not reader.done():
                self._due.clear()
                closing = self._closing
                if self._telemetry_due or loop.time() >= next_telemetry_s:
                    self._telemetry_due = False
                    next_telemetry_s = loop.time() + interval_s
                    await send(await self.telemetry())
                await self.flush(send)
                if closing:
                    self._said_all = True
                    return
                await _wait(self._due, next_telemetry_s - loop.time())
            reader.result()
            if not self._left.is_set():
                raise CoordinatorUnreachable(f"the connection ended ({socket.close_code} {socket.close_reason or ''})")
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, socket: ClientConnection) -> None:
        """Hand over the mirror, drop whatever else is said, until the connection ends; then wake the sender."""
        try:
            with contextlib.suppress(ConnectionClosed):
                async for data in socket:
                    if self.mirror is not None and isinstance(message := decode_coordinator(data), Mirrored):
                        self.mirror.heard(message)
                        await asyncio.sleep(REST_PER_MESSAGE_S + REST_PER_RECORD_S * len(message.records))
        finally:
            self._due.set()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Until the event is set, or the time is over."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, seconds)):
            await event.wait()
