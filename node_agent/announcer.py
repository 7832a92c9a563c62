"""Tell the swarm what this node serves, again and again, and yield what an older claim has. Async.

Publishes every 20 s with 20 % jitter, and withdraws on a clean stop. Between two announcements it looks who else claims
the same cells; at first soon, because two nodes may start in the same moment. What it then yields, or takes back, is
announced at once. A look that takes long never holds up an announcement: it is broken off when the next one is due.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterator

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
LOOK_INTERVAL_S = 8.0  # twice between two announcements; each look costs a lookup per layer
RETRY_S = 2.0  # when nobody could be told
WITHDRAW_TIMEOUT_S = 1.5  # finding the holders among peers that leave too takes one timeout of the DHT, 1 s


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
        self.announced = asyncio.Event()  # set once the swarm knows of us

    @property
    def _project(self) -> ProjectRecord:
        return self._directory.project

    async def run(self) -> None:
        """Until cancelled."""
        await self.look()  # so that what is claimed already is not announced at all
        pauses = iter(FIRST_LOOKS_S)
        while True:
            due = asyncio.get_running_loop().time()
            try:
                await self.publish()
                due += ANNOUNCEMENT_REFRESH_S * random.uniform(1 - REFRESH_JITTER, 1 + REFRESH_JITTER)
            except (DirectoryError, NetworkError) as error:
                log.warning("the swarm could not be told what this node serves: %s", error)
                due += RETRY_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._look_until_changed(pauses)

    async def _look_until_changed(self, first_pauses: Iterator[float]) -> None:
        while True:
            await asyncio.sleep(next(first_pauses, LOOK_INTERVAL_S))
            if await self.look():
                return

    async def look(self) -> bool:
        """Find older claims of our cells: yield to them; take back what is no longer claimed. Whether that changed
        what is served."""
        await self._directory.refresh(self._dht)
        key = self._dht.identity.public_key
        yielded = find_yields(
            self._project,
            (expert.uid for expert in self._experts.by_uid.values()),
            self._claimed_ms,
            key,
            lambda prefix, cells: self._directory.strongest_rivals(prefix, cells, key),
        )
        before, self._experts.yielded = self._experts.yielded, yielded
        for uid in yielded.keys() - before.keys():
            log.warning("%s is yielded: %s", uid, yielded[uid])
        for uid in before.keys() - yielded.keys():
            log.warning("%s is served again: the older claim has ended", uid)
        changed = yielded.keys() != before.keys()
        if changed:
            self._on_change()
        return changed

    async def publish(self) -> None:
        """Announce what is served now. Raises DirectoryError or NetworkError."""
        uids = [expert.uid for expert in self._experts.serving()]
        announcement = Announcement(
            project=self._project.id,
            name=self._name,
            endpoints=self._endpoints,
            state="online",
            claims=claims_of(self._project, uids, self._claimed_ms),
            issued_ms=round(self._clock.wall_s() * 1000),
            load_ms=self._load_ms(),
            agent=AGENT[:40],
        )
        before, self._published = self._published, announcement  # held by somebody, perhaps, also when this fails
        held_by = await publish(self._dht, self._project, announcement, before=before)
        log.info("announced %d experts; held by %d peers", len(uids), held_by)
        if not self.announced.is_set():
            self.announced.set()
            self._on_change()

    async def withdraw(self) -> None:
        """Take the announcement back, so that nobody calls a node that is gone. Not while `run` runs.

        Gives up after a while: peers that cannot be told see it expire.
        """
        if self._published is None:
            return
        try:
            async with asyncio.timeout(WITHDRAW_TIMEOUT_S):
                await withdraw(self._dht, self._project, self._published)
        except TimeoutError:
            log.info("not every peer heard in %.1f s that this node leaves", WITHDRAW_TIMEOUT_S)
        self._published = None
