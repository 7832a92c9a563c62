"""A trainer's words to the coordinator: telemetry every few seconds, and the reports of `swarm.report`.

Reports wait in a bounded queue; when it is full the oldest goes, since a curve can lack a point and the newest points
are what people look at. The queue is for any thread; the link that empties it belongs to the swarm's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable

from learning_at_home.coordinator_access import CoordinatorUrl
from learning_at_home.coordinator_link import CoordinatorLink, Send
from learning_at_home.coordinator_messages import Report, TrainerTelemetry
from learning_at_home.identity import Identity

log = logging.getLogger(__name__)

MAX_QUEUED_REPORTS = 1_024  # a minute without the coordinator at 17 reports per second; 200 KB
LAST_WORDS_S = 1.0  # how long close() waits for the reports that still wait


class ReportQueue:
    """Reports on their way out. Any thread; nothing here blocks."""

    def __init__(self) -> None:
        self.dropped = 0
        self._lock = threading.Lock()
        self._reports: deque[Report] = deque()
        self._wake: Callable[[], None] = lambda: None

    def put(self, report: Report) -> None:
        """Queue a report; over the bound the oldest is dropped and counted."""
        with self._lock:
            if len(self._reports) >= MAX_QUEUED_REPORTS:
                self._reports.popleft()
                self.dropped += 1
            self._reports.append(report)
        self._wake()

    def on_put(self, wake: Callable[[], None]) -> None:
        """Call this after every put, on the thread that puts."""
        self._wake = wake

    def first(self) -> Report | None:
        with self._lock:
            return self._reports[0] if self._reports else None

    def sent(self, report: Report) -> None:
        """Forget a report that is out; while it was being sent it may have been dropped as the oldest."""
        with self._lock:
            if self._reports and self._reports[0] is report:
                self._reports.popleft()

    async def flush(self, send: Send) -> None:
        """Send what waits; what was not sent goes on waiting."""
        while report := self.first():
            await send(report)
            self.sent(report)


def link_of_trainer(
    url: CoordinatorUrl,
    identity: Identity,
    telemetry: Callable[[], TrainerTelemetry],
    reports: ReportQueue,
    coordinator_key: str | None,
) -> CoordinatorLink:
    """The trainer's link, which empties `reports`. Called on the loop that will run it."""
    assert url.project is not None, "a trainer joins one project"

    async def figures() -> TrainerTelemetry:
        return telemetry()

    link = CoordinatorLink(
        url.telemetry,
        url.project,
        "trainer",
        identity,
        identity.name,
        figures,
        coordinator_key,
        flush=reports.flush,
        on_problem=lambda problem: log.info("no connection to the coordinator (%s); training goes on", problem),
    )
    loop = asyncio.get_running_loop()
    reports.on_put(lambda: _wake(loop, link))
    return link


def _wake(loop: asyncio.AbstractEventLoop, link: CoordinatorLink) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: the swarm is, too
        loop.call_soon_threadsafe(link.wake)
