"""What a peer of the DHT does unasked: look around, store its own long-lived records again, hand records over. Async.

All its tasks live in one TaskGroup that `run` holds open; nothing here ends the peer: what goes wrong is logged.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any

from learning_at_home.clock import CLOCK_SKEW_TOLERATED_S, Clock
from learning_at_home.dht.contacts import Contact
from learning_at_home.dht.exchange import Exchange
from learning_at_home.dht.protocol import DhtProtocol
from learning_at_home.dht.records import Record

log = logging.getLogger(__name__)

LOOK_AROUND_S = 30.0  # a lookup of our own id: finds new neighbours, notices dead ones
REPUBLISH_S = 600.0
SHORT_LIFE_MS = 120_000  # what lives less than this is renewed by its publisher's own timer (announcements: 20 s)
MAX_HANDED_OVER = 2_000  # records to one new neighbour
MAX_SPAWNED = 256


class Upkeep:
    """`own_records` gives what this peer published and has not let expire."""

    def __init__(
        self, protocol: DhtProtocol, exchange: Exchange, clock: Clock, own_records: Callable[[], list[Record]]
    ) -> None:
        self._protocol = protocol
        self._exchange = exchange
        self._clock = clock
        self._own_records = own_records
        self._tasks: asyncio.TaskGroup | None = None
        self._num_spawned = 0
        self._has_new_peers = False
        self._republished_s = clock.monotonic_s()
        self._warned_of_clock = False

    async def run(self, ready: asyncio.Event, *loops: Coroutine[Any, Any, None]) -> None:
        """Until cancelled; `loops` run beside its own."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            ready.set()
            for loop in (self._periodically(), *loops):
                _start(tasks, loop)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something short in the background; dropped when too much runs already (strangers cause most of it)."""
        if self._tasks is None or self._num_spawned >= MAX_SPAWNED:
            work.close()
            return
        task = _start(self._tasks, work)
        if task is not None:
            self._num_spawned += 1
            task.add_done_callback(self._note_done)

    def welcome(self, contact: Contact) -> None:
        """A new contact is in the table."""
        self._has_new_peers = True
        self.spawn(self._exchange.hand_over(contact, MAX_HANDED_OVER))

    async def look_around(self) -> None:
        """Make ourselves known to our neighbourhood, and it to us; also in parts of the table not used for an hour."""
        for target in [self._protocol.node_id, *self._protocol.neighbourhood.refresh_targets()]:
            await self._exchange.closest_peers(target)
        offset_s = self._protocol.clock_offset_s()
        if offset_s is not None and abs(offset_s) > CLOCK_SKEW_TOLERATED_S and not self._warned_of_clock:
            self._warned_of_clock = True
            way = "behind" if offset_s > 0 else "ahead"
            log.warning(
                "this machine's clock is %.0f s %s of its peers': they will refuse its records", abs(offset_s), way
            )

    def _note_done(self, task: asyncio.Task[None]) -> None:
        self._num_spawned -= 1

    async def _periodically(self) -> None:
        while True:
            await asyncio.sleep(LOOK_AROUND_S * random.uniform(0.8, 1.2))
            await _logging_failure(self._tidy())

    async def _tidy(self) -> None:
        await self.look_around()
        now = self._clock.monotonic_s()
        if self._has_new_peers or now >= self._republished_s + REPUBLISH_S:
            self._has_new_peers = False
            self._republished_s = now
            await self.republish()

    async def republish(self) -> None:
        """Store our long-lived records again: the peers closest to their keys may be others by now."""
        now_ms = int(self._clock.wall_s() * 1000)
        for record in self._own_records():
            if record.expires_ms > now_ms + SHORT_LIFE_MS:
                await self._exchange.put(record)


def _start(tasks: asyncio.TaskGroup, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
    """The work as a task that logs its failure; None when the group is ending. What never began to run is closed."""
    guarded = _logging_failure(work)
    try:
        task = tasks.create_task(guarded)
    except RuntimeError:
        guarded.close()
        work.close()
        return None
    task.add_done_callback(lambda _: work.close())  # cancelled before its first step it would never be awaited
    return task


async def _logging_failure(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:  # a task's outermost edge
        log.exception("a background task of the DHT failed")
