"""A trainer's words to the coordinator: telemetry every few seconds, and the reports of `swarm.report`.

Async; runs on the swarm's loop for as long as the swarm lives. Losing the coordinator disturbs nobody: it connects
again, with growing pauses, for ever. Reports wait in a bounded queue; when it is full the oldest goes, since a curve
can lack a point and the newest points are what people look at.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidURI, WebSocketException

from learning_at_home.coordinator_messages import (
    MAX_TELEMETRY_BYTES,
    SIGNING_PURPOSE,
    Accepted,
    Challenge,
    Introduction,
    Refused,
    Report,
    TrainerTelemetry,
    decode_coordinator,
    encode,
    introduction_bytes,
)
from learning_at_home.errors import WireError
from learning_at_home.identity import Identity
from learning_at_home.version import AGENT

log = logging.getLogger(__name__)

MAX_QUEUED_REPORTS = 1_024  # a minute without the coordinator at 17 reports per second; 200 KB
HANDSHAKE_TIMEOUT_S = 10.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 15.0  # a coordinator that is back is seen to be back within this
SEND_TIMEOUT_S = 10.0
LAST_WORDS_S = 1.0  # how long close() waits for the reports that still wait


class ReportQueue:
    """Reports on their way out. `put` is for any thread and never blocks."""

    def __init__(self) -> None:
        self.dropped = 0
        self._reports: deque[Report] = deque()
        self._wake: Callable[[], None] = lambda: None

    def put(self, report: Report) -> None:
        """Queue a report; over the bound the oldest is dropped and counted."""
        if len(self._reports) >= MAX_QUEUED_REPORTS:
            self._reports.popleft()
            self.dropped += 1
        self._reports.append(report)
        self._wake()

    def on_put(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def first(self) -> Report | None:
        return self._reports[0] if self._reports else None

    def sent(self, report: Report) -> None:
        """Forget a report that is out; while it was being sent it may have been dropped as the oldest."""
        if self._reports and self._reports[0] is report:
            self._reports.popleft()


@dataclass(slots=True)
class CoordinatorLink:
    """The websocket to a coordinator."""

    url: str
    project: str
    identity: Identity
    name: str
    telemetry: Callable[[], TrainerTelemetry]
    reports: ReportQueue
    coordinator_key: str | None = None  # hex; None: whoever answers at the url, known by TLS alone
    connected: bool = False
    _due: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set; then the reports that wait are still sent, for at most LAST_WORDS_S."""
        loop = asyncio.get_running_loop()
        self.reports.on_put(lambda: _wake(loop, self._due))
        pause_s = FIRST_PAUSE_S
        while not stop.is_set():
            try:
                await self._session(stop)
                pause_s = FIRST_PAUSE_S
            except (OSError, TimeoutError, WireError, WebSocketException, InvalidHandshake, InvalidURI) as error:
                if self.connected:
                    pause_s = FIRST_PAUSE_S
                log.info("no connection to the coordinator (%s); training goes on, next try in %.1f s", error, pause_s)
            self.connected = False
            await _wait(stop, pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _session(self, stop: asyncio.Event) -> None:
        async with connect(
            self.url,
            open_timeout=HANDSHAKE_TIMEOUT_S,
            close_timeout=LAST_WORDS_S,
            max_size=MAX_TELEMETRY_BYTES,
            user_agent_header=AGENT,
        ) as socket:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                interval_s = await self._introduce(socket)
            self.connected = True
            log.info("reporting to the coordinator at %s", self.url)
            await self._report(socket, stop, interval_s)

    async def _introduce(self, socket: ClientConnection) -> float:
        """The interval that the coordinator wants. Raises WireError when it refuses or is not the one that we mean."""
        challenge = decode_coordinator(await socket.recv())
        if not isinstance(challenge, Challenge):
            raise WireError("the coordinator did not begin with a challenge")
        key = challenge.coordinator_public_key
        if self.coordinator_key is not None and key != self.coordinator_key:
            raise WireError(f"the coordinator shows the key {key[:16]}, not {self.coordinator_key[:16]}")
        signed = introduction_bytes(challenge.nonce, self.project, "trainer", key)
        introduction = Introduction(
            role="trainer",
            public_key=self.identity.public_key.hex(),
            signature=self.identity.sign(SIGNING_PURPOSE, signed).hex(),
            name=self.name,
            agent=AGENT,
        )
        await socket.send(encode(introduction))
        answer = decode_coordinator(await socket.recv())
        if isinstance(answer, Refused):
            raise WireError(f"the coordinator refuses this trainer: {answer.message[:300]}")
        if not isinstance(answer, Accepted):
            raise WireError("the coordinator answered an introduction with something else")
        return min(60.0, max(0.05, answer.interval_s))

    async def _report(self, socket: ClientConnection, stop: asyncio.Event, interval_s: float) -> None:
        loop = asyncio.get_running_loop()
        watch = asyncio.create_task(_until_closed(socket, self._due))
        stopped = asyncio.create_task(_wake_when(stop, self._due))
        try:
            next_telemetry = loop.time()
            while not watch.done():
                self._due.clear()
                if loop.time() >= next_telemetry or stop.is_set():
                    await _send(socket, encode(self.telemetry()))
                    next_telemetry = loop.time() + interval_s
                while report := self.reports.first():
                    await _send(socket, encode(report))
                    self.reports.sent(report)
                if stop.is_set():
                    return
                await _wait(self._due, next_telemetry - loop.time())
        finally:
            watch.cancel()
            stopped.cancel()
            await asyncio.gather(watch, stopped, return_exceptions=True)


async def _send(socket: ClientConnection, text: str) -> None:
    async with asyncio.timeout(SEND_TIMEOUT_S):
        await socket.send(text)


async def _until_closed(socket: ClientConnection, due: asyncio.Event) -> None:
    """Read (and ignore) what the coordinator says until it closes; then wake the sender."""
    try:
        async for _ in socket:
            pass
    finally:
        due.set()


async def _wake_when(stop: asyncio.Event, due: asyncio.Event) -> None:
    await stop.wait()
    due.set()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Until the event is set, or the time is over."""
    if seconds <= 0:
        return
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


def _wake(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    try:
        loop.call_soon_threadsafe(event.set)
    except RuntimeError:
        return  # the loop is closed: the swarm is, too
