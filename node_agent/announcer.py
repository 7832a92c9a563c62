"""Tell the swarm what this node serves, again and again, and yield what an older claim has. Async.

Publishes at once on a change, else every 20 s with 20 % jitter, and withdraws on a clean stop. Before it announces it
looks who else claims the same cells; at first it looks again soon, because two nodes may start in the same moment.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Literal

from learning_at_home.clock import Clock
from learning_at_home.dht.node import DhtNode
from learning_at_home.directory.announcement import (
    ANNOUNCEMENT_REFRESH_S,
    REFRESH_JITTER,
    Announcement,
)
from learning_at_home.directory.directory import Directory
from learning_at_home.directory.publisher import publish, withdraw
from learning_at_home.errors import DirectoryError, NetworkError
from learning_at_home.project import ProjectRecord
from learning_at_home.version import AGENT
from node_agent.cells import claims_of, find_yields
from node_agent.experts.hosted import HostedExperts

log = logging.getLogger(__name__)

FIRST_LOOKS_S = (1.0, 3.0)  # after the first announcement: another that was under way has arrived by then
RETRY_S = 2.0  # when nobody could be told

State = Literal["online", "draining", "paused"]


class Announcer:
    """One node's announcement."""

    def __init__(
        self,
        dht: DhtNode,
        directory: Directory,
        experts: HostedExperts,
        clock: Clock,
        *,
        name: str,
        endpoints: tuple[str, ...],
        load_ms: Callable[[], float],
        on_change: Callable[[], None],
    ) -> None:
        self._dht = dht
        self._directory = directory
        self._experts = experts
        self._clock = clock
        self._name = name
        self._endpoints = endpoints
        self._load_ms = load_ms
        self._on_change = on_change
        self._claimed_ms = round(clock.wall_s() * 1000)
        self._published: Announcement | None = None
        self._wake = asyncio.Event()
        self.state: State = "online"
        self.announced = asyncio.Event()  # set once the swarm knows of us

    @property
    def _project(self) -> ProjectRecord:
        return self._directory.project

    def announce_soon(self) -> None:
        """Publish now instead of at the next refresh. On the loop's thread."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        looks = iter(FIRST_LOOKS_S)
        while True:
            pause_s = ANNOUNCEMENT_REFRESH_S * random.uniform(1 - REFRESH_JITTER, 1 + REFRESH_JITTER)
            try:
                await self.look()
                await self.publish()
                pause_s = next(looks, pause_s)
            except (DirectoryError, NetworkError) as error:
                log.warning("the swarm could not be told what this node serves: %s", error)
                pause_s = RETRY_S
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def look(self) -> None:
        """Find older claims of our cells: yield to them; take back what is no longer claimed."""
        await self._directory.refresh(self._dht)
        key = self._dht.identity.public_key
        yielded = find_yields(
            self._project,
            (expert.uid for expert in self._experts.by_uid.values()),
            self._claimed_ms,
            key,
            lambda prefix, cell: self._directory.rivals(prefix, cell, key),
        )
        before, self._experts.yielded = self._experts.yielded, yielded
        for uid in yielded.keys() - before.keys():
            log.warning("%s is yielded: %s", uid, yielded[uid])
        for uid in before.keys() - yielded.keys():
            log.warning("%s is served again: the older claim has ended", uid)
        if yielded.keys() != before.keys():
            self._on_change()

    async def publish(self) -> None:
        """Announce what is served now. Raises DirectoryError or NetworkError."""
        uids = [expert.uid for expert in self._experts.serving()]
        announcement = Announcement(
            project=self._project.id,
            name=self._name,
            endpoints=self._endpoints,
            state=self.state,
            claims=claims_of(self._project, uids, self._claimed_ms),
            issued_ms=round(self._clock.wall_s() * 1000),
            load_ms=self._load_ms(),
            agent=AGENT[:40],
        )
        before = {claim.prefix for claim in self._published.claims} if self._published else set()
        now = {claim.prefix for claim in announcement.claims}
        held_by = await publish(self._dht, announcement, dropped=before - now)
        self._published = announcement
        log.info("announced %d experts; held by %d peers", len(uids), held_by)
        if not self.announced.is_set():
            self.announced.set()
            self._on_change()

    async def withdraw(self) -> None:
        """Take the announcement back, so that nobody calls a node that is gone."""
        if self._published is not None:
            await withdraw(self._dht, self._published)
            self._published = None
