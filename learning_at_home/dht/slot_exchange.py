"""Bring a record into the slots of many keys, and read slots. Async.

Verifies all records that it reads. What a key's holders say of its slots' lives is not signed: a slot counts as living
when more than a quarter of them say so, so that a few liars can neither invent nor hide one. Peers on the way that hold
nothing under the key say nothing about it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from learning_at_home.clock import Clock
from learning_at_home.dht.contacts import Contact
from learning_at_home.dht.crawl import Told, run_lookups, told_of
from learning_at_home.dht.exchange import MAX_PAGES, READ_K, Exchange, Held, Tally, all_of
from learning_at_home.dht.lookup import SPARE, Lookup
from learning_at_home.dht.messages import MAX_FIRST_KNOWN, MAX_KNOWN, MAX_NAMES, MAX_NAMES_BYTES
from learning_at_home.dht.protocol import SLOTS_WORK_S, DhtProtocol
from learning_at_home.dht.records import TAG_BYTES, Record, key_of, newest_per_publisher
from learning_at_home.dht.slots import SlotStorage

SLOT_K = 10  # holders of a key: what fills slots is renewed within a minute or gone, and a read hears 5 of these
OWN_PAGE_BYTES = 1 << 17  # of one key; as MAX_PAGES of another peer hold
PAGES_TIMEOUT_S = 2.0  # for the pages that are left when the lookup has ended


@dataclass(frozen=True, slots=True)
class SlotAsk:
    """What is asked of a key: the lives of 1,024 slots from `first` on, and the records in the slots `wanted`, most
    wanted first (None: in all; none: no records). Those whose tags are in `known` need not come. `covered`: the slots
    that the reader knows somebody for, given these records too, under whichever key they were found; what it wants
    beyond that is waited for.
    """

    key: bytes
    wanted: tuple[int, ...] | None = None
    known: tuple[bytes, ...] = ()
    first: int = 0
    covered: Callable[[Iterable[Record]], Collection[int]] | None = None


@dataclass(frozen=True, slots=True)
class FoundSlots:
    """What the holders of a key say."""

    lives_s: dict[int, int]  # slot -> seconds that it lives at least, without a renewal; living ones only
    records: tuple[Record, ...]  # every publisher's newest, without tombstones and without what was known
    tombstones: tuple[Record, ...]
    num_answered: int  # other peers; when nobody answered, nothing means nothing


@dataclass(slots=True)
class _Reading:
    """What came in on one key. `crawl`: what came in on any key of the same crawl, by tag."""

    ask: SlotAsk
    crawl: dict[bytes, Record]
    records: dict[bytes, Record] = field(default_factory=dict)  # by tag
    lives: dict[Contact | None, bytes] = field(default_factory=dict)  # by who says so; None: this peer
    num_weighed: int = 0  # of the crawl's records
    uncovered: set[int] | None = None  # of the slots wanted, by these; None: they were not weighed yet
    num_cut_short: int = 0  # peers whose first page had no room for what they hold: they may tell the lives yet

    def known(self) -> bytes:
        tags = [*self.records, *self.ask.known]
        return b"".join(tags[:MAX_KNOWN])

    def lacks(self) -> bool:
        """Whether a further page may have what is wanted."""
        if self.num_cut_short and len(self.lives) < READ_K:
            return True
        if self.ask.wanted is None or self.ask.covered is None:
            return True
        if self.uncovered is None:
            self.uncovered = set(self.ask.wanted) - set(self.ask.covered(()))
        if self.uncovered and self.num_weighed < len(self.crawl):
            self.uncovered -= set(self.ask.covered(itertools.islice(self.crawl.values(), self.num_weighed, None)))
            self.num_weighed = len(self.crawl)
        return not self.uncovered.isdisjoint(_agreed(self.lives.values(), self.ask.first))

    def found(self, num_answered: int) -> FoundSlots:
        newest = sorted(newest_per_publisher(self.records.values()).values(), key=lambda record: record.publisher)
        return FoundSlots(
            lives_s=_agreed(self.lives.values(), self.ask.first),
            records=tuple(record for record in newest if not record.is_tombstone),
            tombstones=tuple(record for record in newest if record.is_tombstone),
            num_answered=num_answered,
        )


class _Page(NamedTuple):
    """One answer of one peer; its records are in the reading. `is_cut_short`: it has more, and nothing yet."""

    lives: bytes
    neighbours: list[Contact]
    has_more: bool
    is_cut_short: bool


class SlotExchange:
    """`holds_records`: see Exchange."""

    def __init__(
        self, protocol: DhtProtocol, storage: SlotStorage, exchange: Exchange, clock: Clock, *, holds_records: bool
    ) -> None:
        self._protocol = protocol
        self._storage = storage
        self._exchange = exchange
        self._clock = clock
        self._holds_records = holds_records

    async def put(self, record: Record, names: Sequence[str]) -> list[Held]:
        """Have the SLOT_K closest peers of each name's key hold it, with one request to a peer for all its keys."""
        index_of = {key_of(name): index for index, name in enumerate(names)}
        tally = Tally(len(names))

        async def tell(contact: Contact, keys: Sequence[bytes]) -> bool:
            chunks = list(_chunks([index_of[key] for key in keys], names))
            answers = await all_of(
                [
                    self._protocol.call_store_slots(contact, record, [names[index] for index in indices])
                    for indices in chunks
                ]
            )
            for indices, answer in zip(chunks, answers, strict=True):
                for index, refusal in zip(indices, answer or (), strict=False):
                    tally.note(index, refusal)
            return any(answer is not None for answer in answers)

        close = await self._exchange.tell_closest(list(index_of), tell, SLOTS_WORK_S * len(names), SLOT_K)
        if self._holds_records:
            own = [index for key, index in index_of.items() if key in close or not tally.num_holders(index)]
            refused_here = self._storage.put_many(record, [names[index] for index in own], self._wall_ms())
            for index, refused in zip(own, refused_here, strict=True):
                tally.note(index, refused.value if refused else "")
        return tally.held()

    async def find(self, asks: Sequence[SlotAsk]) -> list[FoundSlots]:
        """What this peer and READ_K of the closest ones to each key hold, in one crawl; one answer for each."""
        crawl: dict[bytes, Record] = {}
        readings = [self._own_reading(ask, crawl) for ask in asks]
        lookups = [self._exchange.start_lookup(ask.key, READ_K, k=SLOT_K) for ask in asks]
        reading_of = {id(lookup): reading for lookup, reading in zip(lookups, readings, strict=True)}

        paging: dict[asyncio.Task[None], _Reading] = {}

        async def fetch_one(contact: Contact, reading: _Reading) -> list[Contact] | None:
            page = await self._page(contact, reading)
            if page is None:
                return None
            if page.is_cut_short:
                reading.num_cut_short += 1
            else:
                reading.lives[contact] = page.lives
            if page.has_more or page.is_cut_short:
                paging[asyncio.create_task(self._read_on(contact, reading, page))] = reading
            return page.neighbours[: READ_K + SPARE]

        async def fetch(contact: Contact, concerned: Sequence[Lookup]) -> Told | None:
            told = await asyncio.gather(*(fetch_one(contact, reading_of[id(lookup)]) for lookup in concerned))
            return None if all(each is None for each in told) else [told_of(each or ()) for each in told]

        try:
            await run_lookups(lookups, fetch, self._clock)
            await _wait_for_wanted(paging)
        finally:
            for task in paging:
                task.cancel()
            await asyncio.gather(*paging, return_exceptions=True)
        return [reading.found(lookup.num_answered) for reading, lookup in zip(readings, lookups, strict=True)]

    def _own_reading(self, ask: SlotAsk, crawl: dict[bytes, Record]) -> _Reading:
        reading = _Reading(ask, crawl)
        own = self._storage.page(ask.key, ask.first, ask.wanted, reading.known(), OWN_PAGE_BYTES, self._wall_ms())
        if own.lives or own.records:
            reading.lives[None] = own.lives
            self._take(reading, own.records)
        return reading

    async def _page(self, contact: Contact, reading: _Reading) -> _Page | None:
        """Of this peer's records those that nobody else brought yet, as many as an answer holds; None: it is silent."""
        ask, known = reading.ask, reading.known()
        if not self._protocol.is_proven_to(contact):  # all of them may take several datagrams, and so a ping before
            known = known[: MAX_FIRST_KNOWN * TAG_BYTES]
        answer = await self._protocol.call_find_slots(contact, ask.key, ask.first, ask.wanted, known)
        if answer is None:
            return None
        found, neighbours = answer
        brought = self._take(reading, found.records)
        has_more = found.has_more and any(record.tag not in known for record in brought)
        return _Page(found.lives, neighbours, has_more, found.has_more and not found.records)

    async def _read_on(self, contact: Contact, reading: _Reading, first: _Page) -> None:
        """Beside the lookup, which has whom it told of: further pages hold it up no more."""
        page = await self._page(contact, reading)
        if first.is_cut_short:
            reading.num_cut_short -= 1
            reading.lives[contact] = (page or first).lives
        for _ in range(MAX_PAGES - 2):
            if page is None or not page.has_more:
                return
            page = await self._page(contact, reading)

    def _take(self, reading: _Reading, encoded: Iterable[bytes]) -> list[Record]:
        """The valid ones."""
        records = self._exchange.valid(encoded)
        by_tag = {record.tag: record for record in records}
        reading.records.update(by_tag)
        reading.crawl.update(by_tag)
        return records

    def _wall_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)


async def _wait_for_wanted(paging: Mapping[asyncio.Task[None], _Reading]) -> None:
    """Until all pages are there of those readings that lack something that is wanted and lives."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PAGES_TIMEOUT_S):
            while left := [task for task, reading in paging.items() if not task.done() and reading.lacks()]:
                await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)


def _agreed(lives: Collection[bytes], first: int) -> dict[int, int]:
    """Of each slot the life that more than a quarter of those grant it who hold anything under the key."""
    holding = [each for each in lives if any(each)]
    longest = max(map(len, holding), default=0)
    padded = [each.ljust(longest, b"\0") for each in holding]
    rank = len(padded) // 4
    agreed = (sorted(column, reverse=True)[rank] for column in zip(*padded, strict=True))
    return {first + offset: life_s for offset, life_s in enumerate(agreed) if life_s}


def _chunks(indices: list[int], names: Sequence[str]) -> Iterable[list[int]]:
    """As many names at once as a request holds."""
    chunk: list[int] = []
    num_bytes = 0
    for index in indices:
        size = len(names[index].encode()) + 3
        if chunk and (len(chunk) == MAX_NAMES or num_bytes + size > MAX_NAMES_BYTES):
            yield chunk
            chunk, num_bytes = [], 0
        chunk.append(index)
        num_bytes += size
    yield chunk
