"""Bring records to the peers that are closest to their key, and get them back. Async.

Verifies all that it reads; of several answers the newest valid record of each publisher counts, never the most common.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from learning_at_home.clock import Clock
from learning_at_home.dht.contacts import Contact
from learning_at_home.dht.crawl import Told, run_lookups, told_of
from learning_at_home.dht.empty_keys import EmptyKeys
from learning_at_home.dht.lookup import SPARE, Lookup
from learning_at_home.dht.messages import MAX_TARGETS
from learning_at_home.dht.protocol import DhtProtocol
from learning_at_home.dht.records import Record, RecordVerifier, Refusal, newest_per_publisher
from learning_at_home.dht.storage import RecordStorage
from learning_at_home.errors import WireError

T = TypeVar("T")

K = 20  # the paper's: of 20 peers chosen by chance not all leave within an hour
READ_K = 5  # of those 20: each of them holds what was stored lately, unless it joined since, lost the datagram or lies
FIND_K = 8  # of those that a store goes to, who tell of the others: as many as a read may ask
MAX_SEEDS = 3 * K  # where many just died, those nearest that others tell of are not K living ones: then these serve
MAX_PAGES = 20  # of one peer's answer: 256 records of 400 bytes take 15 pages of 7,300, after a short first one


@dataclass(frozen=True, slots=True)
class Found:
    """What a lookup brought: every publisher's newest valid record, in the order of the publishers' keys."""

    records: tuple[Record, ...]  # without tombstones
    tombstones: tuple[Record, ...]  # of publishers that withdrew what they had here
    num_answered: int  # other peers; when nobody answered, no records means nothing


@dataclass(frozen=True, slots=True)
class Held:
    """What became of a record: how many peers hold it (this one included), and why others do not."""

    num_holders: int
    refusals: Counter[str]


class Tally:
    """What peers say to each of so many stores."""

    def __init__(self, count: int) -> None:
        self._holders = [0] * count
        self._refusals = [Counter[str]() for _ in range(count)]

    def note(self, index: int, refusal: str) -> None:
        """One more peer holds it, or says why not."""
        self._holders[index] += not refusal
        if refusal:
            self._refusals[index][refusal] += 1

    def num_holders(self, index: int) -> int:
        return self._holders[index]

    def held(self) -> list[Held]:
        return [Held(holders, refusals) for holders, refusals in zip(self._holders, self._refusals, strict=True)]


class Exchange:
    """`holds_records`: this peer may be one of those that hold a record; a client-only one may not."""

    def __init__(
        self,
        protocol: DhtProtocol,
        storage: RecordStorage,
        verifier: RecordVerifier,
        clock: Clock,
        *,
        holds_records: bool,
    ) -> None:
        self.refusals: Counter[str] = Counter()  # of records that were found, not of those stored here
        self._empty = EmptyKeys()
        self._protocol = protocol
        self._storage = storage
        self._verifier = verifier
        self._clock = clock
        self._holds_records = holds_records

    async def find(self, key: bytes) -> Found:
        """What this peer and READ_K of the closest ones hold under a key."""
        return (await self.find_many([key]))[key]

    async def find_many(self, keys: Iterable[bytes]) -> dict[bytes, Found]:
        """The same for many keys, in one crawl. Where enough peers had nothing a moment ago nobody is asked."""
        now, found = self._clock.monotonic_s(), dict[bytes, Found]()
        collected = {key: self._storage.records(key, self._wall_ms()) for key in keys}
        for key, own in list(collected.items()):
            num_answered = self._empty.num_answered(key, now)
            if num_answered is not None and not own:
                found[key] = Found((), (), num_answered)
                del collected[key]

        async def ask(contact: Contact, lookups: Sequence[Lookup]) -> Told | None:
            fetched = await all_of([self._fetch_pages(contact, lookup.target) for lookup in lookups])
            told: list[dict[int, Contact]] = []
            for lookup, (records, neighbours) in zip(lookups, fetched, strict=True):
                collected[lookup.target].extend(records)
                told.append(told_of((neighbours or [])[: READ_K + SPARE]))
            return None if all(neighbours is None for _, neighbours in fetched) else told

        lookups = [self.start_lookup(key, READ_K) for key in collected]
        await run_lookups(lookups, ask, self._clock)
        for lookup in lookups:
            found[lookup.target] = _found(collected[lookup.target], lookup.num_answered)
            if not collected[lookup.target] and lookup.num_answered >= READ_K:
                self._empty.note(lookup.target, lookup.num_answered, self._clock.monotonic_s())
        return found

    async def put(self, record: Record) -> Held:
        """Have the k closest peers hold the record; this peer too when it is one of them, or when nobody else will."""
        (held,) = await self.put_many([record])
        return held

    async def put_many(self, records: Sequence[Record]) -> list[Held]:
        """The same for many records, whose closest peers are found in one crawl."""
        of_key: dict[bytes, list[int]] = {}
        for index, record in enumerate(records):
            self._empty.forget(record.key)
            of_key.setdefault(record.key, []).append(index)
        tally = Tally(len(records))

        async def tell(contact: Contact, keys: Sequence[bytes]) -> bool:
            indices = [index for key in keys for index in of_key[key]]
            told = await all_of([self._protocol.call_store(contact, records[index]) for index in indices])
            for index, refusal in zip(indices, told, strict=True):
                if refusal is not None:
                    tally.note(index, refusal)
            return any(refusal is not None for refusal in told)

        close = await self.tell_closest(list(of_key), tell)
        for index, record in enumerate(records):
            if self._holds_records and (record.key in close or not tally.num_holders(index)):
                refused_here = self._storage.put(record, self._wall_ms())
                tally.note(index, refused_here.value if refused_here else "")
        return tally.held()

    async def tell_closest(
        self,
        targets: Sequence[bytes],
        tell: Callable[[Contact, Sequence[bytes]], Awaitable[bool]],
        work_s: float = 0.0,
        k: int = K,
    ) -> frozenset[bytes]:
        """Tell the k closest peers of each target something, each once for all that it is close to.

        `tell` returns whether the peer answered, which may take it `work_s` longer than other questions. Returns the
        targets that this peer, if it holds records, is itself one of the closest to; of those k - 1 others are told.

        Two crawls: one finds out who is there, and ends when enough of them have answered; the second asks nobody for
        neighbours and tells. Who does not answer in time is replaced; it is still told, as often as it takes: a
        question outlives who asked it (questions.py).
        """
        finding = [self.start_lookup(target, FIND_K, MAX_SEEDS, len(targets) - 1) for target in targets]
        await self._find_nodes(finding)
        close = frozenset(
            lookup.target
            for lookup in finding
            if self._holds_records and lookup.num_nearer(self._protocol.distance(lookup.target)) < k
        )
        telling = [lookup.telling(k - (lookup.target in close), work_s) for lookup in finding]

        async def ask(contact: Contact, lookups: Sequence[Lookup]) -> Told | None:
            if not self._protocol.is_proven_to(contact) and await self._protocol.greet(contact.address) != contact:
                return None  # whoever names an address to us must not have long datagrams sent there
            has_answered = await tell(contact, [lookup.target for lookup in lookups])
            return [{}] * len(lookups) if has_answered else None

        await run_lookups(telling, ask, self._clock)
        return close

    async def closest_peers(self, target: bytes) -> list[Contact]:
        """The k closest peers that answered, the closest first."""
        lookup = self.start_lookup(target, K, MAX_SEEDS)
        await self._find_nodes([lookup])
        return lookup.closest()

    async def hand_over(self, newcomer: Contact, max_records: int) -> None:
        """Give a new contact the records that it should hold and whose closest holder, as far as we know, we are."""
        now = self._clock.monotonic_s()
        neighbourhood = self._protocol.neighbourhood
        for record in list(self._storage)[:max_records]:
            if neighbourhood.knows_nearer(record.key, self._protocol.distance(record.key), newcomer, now):
                continue
            if newcomer not in neighbourhood.closest(record.key, K, now):
                continue
            if await self._protocol.call_store(newcomer, record) is None:
                return  # gone already

    async def _find_nodes(self, lookups: Sequence[Lookup]) -> None:
        async def ask(contact: Contact, lookups: Sequence[Lookup]) -> Told | None:
            targets = [lookup.target for lookup in lookups]
            chunks = [targets[start : start + MAX_TARGETS] for start in range(0, len(targets), MAX_TARGETS)]
            answers = await all_of([self._protocol.call_find_node(contact, *chunk) for chunk in chunks])
            if all(told is None for told in answers):
                return None
            told = told_of(itertools.chain.from_iterable(told or () for told in answers))
            return [told] * len(lookups)

        await run_lookups(lookups, ask, self._clock)

    def start_lookup(self, target: bytes, need: int, num_seeds: int = K, num_beside: int = 0, k: int = K) -> Lookup:
        protocol = self._protocol
        spare = protocol.round_trips.spare(need, SPARE)
        lookup = Lookup(
            target, protocol.node_id, k, need, protocol.patience_s, protocol.limits, spare, num_beside=num_beside
        )
        lookup.add(self._protocol.neighbourhood.closest(target, num_seeds, self._clock.monotonic_s()))
        return lookup

    async def _fetch_pages(self, contact: Contact, key: bytes) -> tuple[list[Record], list[Contact] | None]:
        """The valid records that a peer holds under a key, and whom it told us of (None: it did not answer)."""
        records: list[Record] = []
        told: list[Contact] | None = None
        after = b""
        for _ in range(MAX_PAGES):
            answer = await self._protocol.call_find_value(contact, key, after)
            if answer is None:
                break
            values, neighbours = answer
            told = neighbours if told is None else told
            records += self.valid(values.records, key)
            if values.more <= after:
                break
            after = values.more
        return records, told

    def valid(self, encoded: Iterable[bytes], key: bytes | None = None) -> list[Record]:
        """Those that are valid, and of this key if one is given; what is not is counted with its reason."""
        valid: list[Record] = []
        for data in encoded:
            try:
                record = Record.from_bytes(data)
                is_elsewhere = key is not None and record.key != key
                refusal = Refusal.MALFORMED if is_elsewhere else self._verifier.refusal(record, self._wall_ms())
            except WireError:
                refusal = Refusal.MALFORMED
            if refusal is None:
                valid.append(record)
            else:
                self.refusals[refusal.value] += 1
        return valid

    def _wall_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)


async def all_of(asked: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What they return. A lone one, as most are, needs no task of its own."""
    if len(asked) == 1:
        return [await asked[0]]
    return list(await asyncio.gather(*asked))


def _found(records: Iterable[Record], num_answered: int) -> Found:
    newest = sorted(newest_per_publisher(records).values(), key=lambda record: record.publisher)
    living = tuple(record for record in newest if not record.is_tombstone)
    return Found(living, tuple(record for record in newest if record.is_tombstone), num_answered)
