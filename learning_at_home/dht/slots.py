"""Keys whose records fill slots: bounded, whoever comes. Pure: `now_ms` is passed in.

One signed record is stored under many keys at once, each the hash of a name. A *slot rule* says which numbered slots of
such a key the record fills; the DHT itself does not know what they mean. A slot has a few places: half for those who
have been there longest and renew in time, which strangers cannot take however many they are and however often they
come; half for the freshest, so that a newcomer is seen although the others never leave. So a key grows with the number
of its slots, never with the number of publishers.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from learning_at_home.dht.holdings import Expiries, Quota, Usage
from learning_at_home.dht.records import (
    ITEM_BYTES,
    SKEW_MS,
    TAG_BYTES,
    Record,
    RecordVerifier,
    Refusal,
    is_newer,
    key_of,
)

TENURE_PLACES = 2
FRESH_PLACES = 2
MAX_ENDED = 64  # per key: publishers that left, remembered as long as their last record, so that nothing brings it back
SLOT_BYTES = 100  # what a filled slot counts for in a bound
MAX_LIVES = 1_024  # slots whose lives one answer tells
MAX_LIFE_TOLD_S = 255
# Of a record under all names of one request: no announcement has more in one grid. To displace others takes 20 us each.
MAX_SLOTS_AT_ONCE = 16_384
# A node with cells in all 64 lines of 8 layers, whose every key this peer holds, has 520 records of 4 kB here at most.
QUOTA = Quota(records_per_publisher=2_048, bytes_per_publisher=4 << 20, total_bytes=64 << 20)


class SlotRule(Protocol):
    """Which slots a record fills; asked only about records whose signature is good."""

    def slots(self, record: Record, name: str) -> Collection[int]:
        """Slots of the key of this name, none for what does not belong there. Cheap and bounded, whoever signed it."""
        ...


class NoSlots:
    """The rule of a peer that was given none."""

    def slots(self, record: Record, name: str) -> Collection[int]:
        return ()


@dataclass(frozen=True, slots=True)
class Claimant:
    """One who wants a place in a slot. `since_ms`: when it first had one here; `fresh_ms`: when it last renewed."""

    publisher: bytes
    since_ms: int
    fresh_ms: int


@dataclass(frozen=True, slots=True)
class SlotPage:
    """Some of a key's records; `lives`: per slot the seconds that the longest-lived record in it has left, 0: empty."""

    lives: bytes
    records: tuple[bytes, ...]
    has_more: bool


@dataclass(slots=True)
class _Entry:
    """A publisher's newest record under a key. Without slots: it left."""

    record: Record
    since_ms: dict[int, int]  # slot -> since when it is there
    fresh_ms: int
    num_bytes: int


@dataclass(slots=True)
class _Key:
    entries: dict[bytes, _Entry] = field(default_factory=dict)
    slots: dict[int, tuple[bytes, ...]] = field(default_factory=dict)  # slot -> publishers
    ended: OrderedDict[bytes, None] = field(default_factory=OrderedDict)


@dataclass(slots=True)
class _Budget:
    """What is left of one request's."""

    num_slots: int


class SlotStorage:
    """The records that a peer holds in slots, for others."""

    def __init__(self, verifier: RecordVerifier, rule: SlotRule, quota: Quota = QUOTA) -> None:
        self._verifier = verifier
        self._rule = rule
        self._usage = Usage(quota)
        self._keys: dict[bytes, _Key] = {}
        self._expiries = Expiries()
        self.refusals: Counter[str] = Counter()
        self.num_claimed = 0  # slots, by all that came

    @property
    def num_records(self) -> int:
        """A record counts once under each key."""
        return self._usage.num_records

    @property
    def num_bytes(self) -> int:
        return self._usage.num_bytes

    def put(self, record: Record, name: str, now_ms: int) -> Refusal | None:
        """Hold the record in its slots of the name's key, or say why not. Holding it already is no refusal."""
        (refusal,) = self.put_many(record, [name], now_ms)
        return refusal

    def put_many(self, record: Record, names: Sequence[str], now_ms: int) -> list[Refusal | None]:
        """The same for many names; the record is verified once, and only if it is new under one of them.

        Those are refused that come after MAX_SLOTS_AT_ONCE slots.
        """
        self.prune(now_ms)
        verdict: list[Refusal | None] = []
        budget = _Budget(MAX_SLOTS_AT_ONCE)
        refusals: list[Refusal | None] = []
        for name in names:
            refusal = self._put(record, name, now_ms, verdict, budget)
            if refusal is not None:
                self.refusals[refusal.value] += 1
            refusals.append(refusal)
        self.num_claimed += MAX_SLOTS_AT_ONCE - budget.num_slots
        return refusals

    def page(
        self, key: bytes, first: int, wanted: tuple[int, ...] | None, known: bytes, max_bytes: int, now_ms: int
    ) -> SlotPage:
        """The lives of the slots from `first` on, and as many records as then fit, each with ITEM_BYTES around it, of
        those wanted (None: of all), in that order. Where not all the lives fit there are no records, but there is more.

        With any records wanted those of publishers that left come first. Records whose tags are in `known` are left
        out: whoever wants more asks again with the tags of those that came.
        """
        self.prune(now_ms)
        here = self._keys.get(key)
        if here is None:
            return SlotPage(b"", (), False)
        told = {known[start : start + TAG_BYTES] for start in range(0, len(known), TAG_BYTES)}
        encoded: list[bytes] = []
        lives = _lives(here, first, now_ms)
        if len(lives) > max_bytes:
            return SlotPage(lives[: max(0, max_bytes)], (), True)
        num_bytes = len(lives)
        for entry in _wanted(here, wanted):
            if entry.record.tag in told:
                continue
            told.add(entry.record.tag)
            data = entry.record.to_bytes()
            num_bytes += len(data) + ITEM_BYTES
            if num_bytes > max_bytes:
                return SlotPage(lives, tuple(encoded), True)
            encoded.append(data)
        return SlotPage(lives, tuple(encoded), False)

    def prune(self, now_ms: int) -> None:
        """Forget what has expired."""
        horizon = now_ms - SKEW_MS
        for key, publisher in self._expiries.due(horizon):
            here = self._keys.get(key)
            entry = here.entries.get(publisher) if here else None
            if entry is not None and entry.record.expires_ms <= horizon:
                self._remove(key, publisher)

    def _put(
        self, record: Record, name: str, now_ms: int, verdict: list[Refusal | None], budget: _Budget
    ) -> Refusal | None:
        """`verdict`: the verifier's, as soon as it was asked."""
        key = key_of(name)
        here = self._keys.get(key)
        held = here.entries.get(record.publisher) if here else None
        if held is not None:
            if held.record == record:
                return None
            if held.record.key != record.key:  # what it withdrew elsewhere must not end what it has here
                return Refusal.MALFORMED
            if not is_newer(record, held.record):
                return Refusal.OLDER
        if not verdict:
            verdict.append(self._verifier.refusal(record, now_ms))
        if verdict[0] is not None:
            return verdict[0]
        if budget.num_slots <= 0:
            return Refusal.PUBLISHER_QUOTA
        claimed = () if record.is_tombstone else self._rule.slots(record, name)
        budget.num_slots -= len(claimed)
        if not claimed and held is None:
            return Refusal.NO_SLOT
        record_bytes = record.num_bytes
        more_bytes = record_bytes + SLOT_BYTES * len(claimed) - (held.num_bytes if held else 0)
        refusal = self._usage.refusal(record.publisher, held is None, more_bytes)
        if refusal is not None:
            return refusal
        since_ms = self._win(key, record, claimed, held.since_ms if held else {}, now_ms)
        if not since_ms and held is None:
            return Refusal.SLOT_FULL
        num_bytes = record_bytes + SLOT_BYTES * len(since_ms)
        entry = _Entry(record, since_ms, min(record.sequence, now_ms), num_bytes)
        if here is not None and held is not None and held.since_ms and since_ms:
            self._replace(key, here, held, entry)
            return None
        if held is not None:
            self._remove(key, record.publisher)
        self._add(key, entry)
        return None

    def _win(
        self, key: bytes, record: Record, claimed: Collection[int], had_ms: dict[int, int], now_ms: int
    ) -> dict[int, int]:
        """Which of the claimed slots it gets, and since when it counts as there. Whom it displaces leaves."""
        fresh_ms = min(record.sequence, now_ms)
        won: dict[int, int] = {}
        here = self._keys.get(key)
        slots = here.slots if here is not None else {}
        for slot in claimed:
            if slot not in slots or len(slots[slot]) < TENURE_PLACES + FRESH_PLACES:
                won[slot] = had_ms.get(slot, now_ms)
                continue
            newcomer = Claimant(record.publisher, had_ms.get(slot, now_ms), fresh_ms)
            loser = surplus([*self._claimants(key, slot, but=record.publisher), newcomer])
            if loser != newcomer:
                won[slot] = newcomer.since_ms
                if loser is not None:
                    self._leave(key, loser.publisher, slot)
        return won

    def _claimants(self, key: bytes, slot: int, but: bytes) -> Iterator[Claimant]:
        here = self._keys.get(key)
        for publisher in here.slots.get(slot, ()) if here else ():
            if here is not None and publisher != but:
                entry = here.entries[publisher]
                yield Claimant(publisher, entry.since_ms[slot], entry.fresh_ms)

    def _leave(self, key: bytes, publisher: bytes, slot: int) -> None:
        here = self._keys[key]
        entry = here.entries[publisher]
        if len(entry.since_ms) == 1:
            self._remove(key, publisher)
            return
        del entry.since_ms[slot]
        entry.num_bytes -= SLOT_BYTES
        _vacate(here, slot, publisher)
        self._usage.add(publisher, 0, -SLOT_BYTES)

    def _replace(self, key: bytes, here: _Key, held: _Entry, entry: _Entry) -> None:
        """A renewal. Both have slots, mostly the same."""
        publisher = entry.record.publisher
        here.entries[publisher] = entry
        had, has = held.since_ms, entry.since_ms
        for slot in had:
            if slot not in has:
                _vacate(here, slot, publisher)
        for slot in has:
            if slot not in had:
                here.slots[slot] = (*here.slots.get(slot, ()), publisher)
        self._usage.add(publisher, 0, entry.num_bytes - held.num_bytes)
        self._note_expiry(entry.record, key)

    def _add(self, key: bytes, entry: _Entry) -> None:
        here = self._keys.setdefault(key, _Key())
        publisher = entry.record.publisher
        here.entries[publisher] = entry
        for slot in entry.since_ms:
            here.slots[slot] = (*here.slots.get(slot, ()), publisher)
        self._usage.add(publisher, 1, entry.num_bytes)
        if not entry.since_ms:
            here.ended[publisher] = None
            if len(here.ended) > MAX_ENDED:
                self._remove(key, next(iter(here.ended)))
        self._note_expiry(entry.record, key)

    def _note_expiry(self, record: Record, key: bytes) -> None:
        self._expiries.push(record.expires_ms, key, record.publisher)
        if len(self._expiries) > 2 * self.num_records + 1_000:
            self._expiries.replace(
                (entry.record.expires_ms, key, publisher)
                for key, here in self._keys.items()
                for publisher, entry in here.entries.items()
            )

    def _remove(self, key: bytes, publisher: bytes) -> None:
        here = self._keys[key]
        entry = here.entries.pop(publisher)
        here.ended.pop(publisher, None)
        for slot in entry.since_ms:
            _vacate(here, slot, publisher)
        self._usage.add(publisher, -1, -entry.num_bytes)
        if not here.entries:
            del self._keys[key]


def _vacate(here: _Key, slot: int, publisher: bytes) -> None:
    publishers = here.slots[slot]
    if len(publishers) == 1:
        del here.slots[slot]
    else:
        here.slots[slot] = tuple([other for other in publishers if other != publisher])


def surplus(claimants: Collection[Claimant]) -> Claimant | None:
    """Of those who want a slot's places the one who gets none; None while there is room. At most one too many."""
    if len(claimants) <= TENURE_PLACES + FRESH_PLACES:
        return None
    by_tenure = sorted(claimants, key=lambda claimant: (claimant.since_ms, claimant.publisher))
    return min(by_tenure[TENURE_PLACES:], key=lambda claimant: (claimant.fresh_ms, claimant.publisher))


def _wanted(here: _Key, wanted: tuple[int, ...] | None) -> Iterator[_Entry]:
    """The entries that a reader wants; one may come several times."""
    if wanted == ():
        return
    for publisher in here.ended:
        yield here.entries[publisher]
    if wanted is None:
        yield from here.entries.values()
        return
    for slot in wanted:
        for publisher in here.slots.get(slot, ()):
            yield here.entries[publisher]


def _lives(here: _Key, first: int, now_ms: int) -> bytes:
    lives = bytearray(MAX_LIVES)
    told = range(first, first + MAX_LIVES)
    filled = here.slots if len(here.slots) < MAX_LIVES else told  # a key may have millions
    for slot in filled:
        if slot in told and (publishers := here.slots.get(slot)):
            left_ms = max(here.entries[publisher].record.expires_ms for publisher in publishers) - now_ms
            lives[slot - first] = min(max(-(-left_ms // 1000), 0), MAX_LIFE_TOLD_S)
    return bytes(lives).rstrip(b"\0")
