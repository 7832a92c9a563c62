"""The records that a peer holds for others, bounded in every direction. Pure: `now_ms` is passed in.

Takes the place of the package's `IStorage`, whose one value per key, without an author, cannot hold what we hold; our
protocol is its only user. The bounds are written beside their constants; what is refused is counted with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from learning_at_home.dht.holdings import Expiries, Quota, Usage
from learning_at_home.dht.records import ITEM_BYTES, SKEW_MS, Record, RecordVerifier, Refusal, is_newer


@dataclass(frozen=True, slots=True)
class StorageBounds:
    """What one peer gives to the DHT."""

    records_per_key: int = 256  # coordinators that publish one project id; announcements fill slots instead: slots.py
    records_per_publisher: int = 512  # projects of one coordinator, and room for tombstones
    bytes_per_publisher: int = 1 << 20
    total_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Page:
    """Some of a key's records in the order of their publishers; `more`: the publisher to continue after, or empty.

    Where there was no room for any, that is a publisher that does not exist, just before the first.
    """

    records: tuple[bytes, ...]
    more: bytes


class RecordStorage:
    """key -> publisher -> record."""

    def __init__(self, verifier: RecordVerifier, bounds: StorageBounds | None = None) -> None:
        self._verifier = verifier
        self._bounds = bounds or StorageBounds()
        self._by_key: dict[bytes, dict[bytes, Record]] = {}
        quota = Quota(self._bounds.records_per_publisher, self._bounds.bytes_per_publisher, self._bounds.total_bytes)
        self._usage = Usage(quota)
        self._expiries = Expiries()
        self.refusals: Counter[str] = Counter()

    @property
    def num_records(self) -> int:
        return self._usage.num_records

    @property
    def num_bytes(self) -> int:
        return self._usage.num_bytes

    def put(self, record: Record, now_ms: int) -> Refusal | None:
        """Hold the record, or say why not. A refusal changes nothing but its counter; holding it already is none."""
        refusal = self._put(record, now_ms)
        if refusal is not None:
            self.refusals[refusal.value] += 1
        return refusal

    def records(self, key: bytes, now_ms: int) -> list[Record]:
        """What is held under a key, tombstones included, in the order of the publishers' keys."""
        self.prune(now_ms)
        held = self._by_key.get(key, {})
        return [held[publisher] for publisher in sorted(held)]

    def page(self, key: bytes, after: bytes, max_bytes: int, now_ms: int) -> Page:
        """As many records of publishers after `after` as fit, each with ITEM_BYTES around it."""
        encoded: list[bytes] = []
        num_bytes = 0
        for record in self.records(key, now_ms):
            if record.publisher <= after:
                continue
            data = record.to_bytes()
            num_bytes += len(data) + ITEM_BYTES
            if num_bytes > max_bytes:
                return Page(tuple(encoded), _just_before(record.publisher))
            encoded.append(data)
        return Page(tuple(encoded), b"")

    def prune(self, now_ms: int) -> None:
        """Forget what has expired."""
        horizon = now_ms - SKEW_MS
        for key, publisher in self._expiries.due(horizon):
            record = self._by_key.get(key, {}).get(publisher)
            if record is not None and record.expires_ms <= horizon:
                self._remove(record)

    def __iter__(self) -> Iterator[Record]:
        """Every record held; a copy, so that the caller may await while it goes through them."""
        return iter([record for held in self._by_key.values() for record in held.values()])

    def _put(self, record: Record, now_ms: int) -> Refusal | None:
        self.prune(now_ms)
        held = self._by_key.get(record.key, {}).get(record.publisher)
        if held == record:
            return None
        if held is not None and not is_newer(record, held):  # before the signature: a replay costs no verification
            return Refusal.OLDER
        refusal = self._verifier.refusal(record, now_ms)
        if refusal is not None:
            return refusal
        freed = held.num_bytes if held is not None else 0
        refusal = self._usage.refusal(record.publisher, held is None, record.num_bytes - freed)
        if refusal is not None:
            return refusal
        if held is not None:
            self._remove(held)
        else:
            stalest = self._stalest_of_full_key(record.key)
            if stalest is not None:
                if stalest.sequence >= record.sequence:
                    return Refusal.KEY_FULL
                self._remove(stalest)
        self._add(record)
        return None

    def _stalest_of_full_key(self, key: bytes) -> Record | None:
        """The record that a newcomer would push out: the one signed longest ago; None while there is room.

        Not the one that expires first: a stranger's long life must not outlast what is renewed every 20 s.
        """
        held = self._by_key.get(key, {})
        if len(held) < self._bounds.records_per_key:
            return None
        return min(held.values(), key=lambda record: (record.sequence, record.publisher))

    def _add(self, record: Record) -> None:
        self._by_key.setdefault(record.key, {})[record.publisher] = record
        self._usage.add(record.publisher, 1, record.num_bytes)
        self._expiries.push(record.expires_ms, record.key, record.publisher)
        if len(self._expiries) > 2 * self.num_records + 1_000:
            self._expiries.replace((held.expires_ms, held.key, held.publisher) for held in self)

    def _remove(self, record: Record) -> None:
        held = self._by_key[record.key]
        del held[record.publisher]
        if not held:
            del self._by_key[record.key]
        self._usage.add(record.publisher, -1, -record.num_bytes)


def _just_before(publisher: bytes) -> bytes:
    return max(0, int.from_bytes(publisher, "big") - 1).to_bytes(len(publisher), "big")
