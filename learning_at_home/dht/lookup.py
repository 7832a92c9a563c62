"""Kademlia's iterative lookup, as a pure core and a small async driver.

Beside the package's crawl, which asks in rounds: there one dead peer holds up a whole round for its timeout, a round's
first value ends the search, and of several values the most common one wins. Here `alpha` questions are always under way
(one that is overdue no longer counts, so the dead cost no parallelism), the search ends when the k closest peers that
are alive and in time have answered, and what all of them hold is merged: see records.newest_per_publisher.
Source: Maymounkov & Mazières, 2002, section 2.3.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from learning_at_home.clock import Clock
from learning_at_home.dht.contacts import Contact

ALPHA = 5  # the paper's 3, and two that may be slow
HOPELESS = 5  # times its patience: it was asked three times by then, and the last answer would be here
MAX_ASKED = 128  # a lookup among a million peers asks fewer; a lying neighbourhood cannot make it endless


class _Asked(NamedTuple):
    """A question that is under way."""

    overdue_s: float
    hopeless_s: float


@dataclass(slots=True)
class Lookup:
    """Who is to be asked next, and who is closest, given what came back. `own_id` is never asked.

    `patience_s`: after how long a peer is overdue.
    """

    target: bytes
    own_id: bytes
    k: int
    patience_s: Callable[[Contact], float]
    alpha: int = ALPHA
    _candidates: list[tuple[int, Contact]] = field(default_factory=list)  # heap: seen, not asked yet
    _seen: set[bytes] = field(default_factory=set)
    _under_way: dict[Contact, _Asked] = field(default_factory=dict)
    _answered: list[tuple[int, Contact]] = field(default_factory=list)
    _num_asked: int = 0

    def add(self, contacts: Iterable[Contact]) -> None:
        """Peers that may be asked."""
        for contact in contacts:
            if contact.node_id not in self._seen and contact.node_id != self.own_id:
                self._seen.add(contact.node_id)
                heapq.heappush(self._candidates, (contact.distance(self.target), contact))

    def next_to_ask(self, now: float) -> list[Contact]:
        """Peers to ask at this moment; they count as asked from here on."""
        chosen: list[Contact] = []
        on_time = sum(now < asked.overdue_s for asked in self._under_way.values())
        while self._candidates and on_time < self.alpha and self._num_asked < MAX_ASKED and self._may_matter():
            _, contact = heapq.heappop(self._candidates)
            patience_s = self.patience_s(contact)
            self._under_way[contact] = _Asked(now + patience_s, now + HOPELESS * patience_s)
            self._num_asked += 1
            on_time += 1
            chosen.append(contact)
        return chosen

    def answered(self, contact: Contact, told: Iterable[Contact]) -> None:
        """It answered, and told us of these peers."""
        del self._under_way[contact]
        heapq.heappush(self._answered, (contact.distance(self.target), contact))
        self.add(told)

    def failed(self, contact: Contact) -> None:
        del self._under_way[contact]

    def is_done(self, now: float) -> bool:
        """Nobody who could be among the k closest is left to ask or to wait for.

        The overdue are not waited for when k others have answered; where there are no k others, a little longer.
        """
        if self._candidates and self._num_asked < MAX_ASKED and self._may_matter():
            return False
        horizon = self._horizon()
        for contact, asked in self._under_way.items():
            if horizon is None:
                if now < asked.hopeless_s:
                    return False
            elif now < asked.overdue_s and contact.distance(self.target) < horizon:
                return False
        return True

    def next_change_s(self, now: float) -> float | None:
        """When time alone may make a difference."""
        moments = [moment for asked in self._under_way.values() for moment in asked if now < moment]
        return min(moments, default=None)

    @property
    def num_answered(self) -> int:
        return len(self._answered)

    def closest(self) -> list[Contact]:
        """The k closest peers that answered, the closest first."""
        return [contact for _, contact in heapq.nsmallest(self.k, self._answered)]

    def _may_matter(self) -> bool:
        horizon = self._horizon()
        return horizon is None or self._candidates[0][0] < horizon

    def _horizon(self) -> int | None:
        """Distance of the k-th closest peer that answered; None while fewer than k have."""
        if len(self._answered) < self.k:
            return None
        return heapq.nsmallest(self.k, self._answered)[-1][0]


async def run_lookup(
    lookup: Lookup, ask: Callable[[Contact], Awaitable[Iterable[Contact] | None]], clock: Clock
) -> None:
    """Ask until it is done. `ask` returns whom the peer told us of, or None when it did not answer in its time."""
    progress = asyncio.Event()

    async def ask_one(contact: Contact) -> None:
        told = await ask(contact)
        if told is None:
            lookup.failed(contact)
        else:
            lookup.answered(contact, told)
        progress.set()

    under_way: set[asyncio.Task[None]] = set()
    async with asyncio.TaskGroup() as tasks:
        while True:
            now = clock.monotonic_s()
            for contact in lookup.next_to_ask(now):
                task = tasks.create_task(ask_one(contact))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            if lookup.is_done(now):
                break
            progress.clear()
            change_s = lookup.next_change_s(now)
            try:
                async with asyncio.timeout(None if change_s is None else change_s - now):
                    await progress.wait()
            except TimeoutError:
                continue  # someone is overdue: another may be asked in its stead
        for task in under_way:
            task.cancel()
