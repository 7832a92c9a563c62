"""What a storage of records keeps count of: who holds how much of it, and what ends when. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from learning_at_home.dht.records import Refusal


@dataclass(frozen=True, slots=True)
class Quota:
    """What one peer gives to the DHT."""

    records_per_publisher: int
    bytes_per_publisher: int
    total_bytes: int  # with Python's own overhead about twice that in memory


class Usage:
    """How much of a quota is taken."""

    def __init__(self, quota: Quota) -> None:
        self._quota = quota
        self._of_publisher: dict[bytes, tuple[int, int]] = {}  # records, bytes
        self.num_records = 0
        self.num_bytes = 0

    def refusal(self, publisher: bytes, more_records: int, more_bytes: int) -> Refusal | None:
        """Why so much more of this publisher does not fit, or None."""
        num_records, num_bytes = self._of_publisher.get(publisher, (0, 0))
        if (
            num_records + more_records > self._quota.records_per_publisher
            or num_bytes + more_bytes > self._quota.bytes_per_publisher
        ):
            return Refusal.PUBLISHER_QUOTA
        return Refusal.STORAGE_FULL if self.num_bytes + more_bytes > self._quota.total_bytes else None

    def add(self, publisher: bytes, more_records: int, more_bytes: int) -> None:
        """Count what came, or, with negative numbers, what went."""
        num_records, num_bytes = self._of_publisher.get(publisher, (0, 0))
        if num_records + more_records == 0:
            self._of_publisher.pop(publisher, None)
        else:
            self._of_publisher[publisher] = (num_records + more_records, num_bytes + more_bytes)
        self.num_records += more_records
        self.num_bytes += more_bytes


class Expiries:
    """When what is held under (key, publisher) ends. Entries of what was replaced fall out when they come up."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, bytes, bytes]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, expires_ms: int, key: bytes, publisher: bytes) -> None:
        heapq.heappush(self._heap, (expires_ms, key, publisher))

    def due(self, horizon_ms: int) -> Iterator[tuple[bytes, bytes]]:
        """What ends by then, each told once; it may have been renewed since it was pushed."""
        while self._heap and self._heap[0][0] <= horizon_ms:
            _, key, publisher = heapq.heappop(self._heap)
            yield key, publisher

    def replace(self, living: Iterable[tuple[int, bytes, bytes]]) -> None:
        """Begin anew: someone renews a long life over and over."""
        self._heap = list(living)
        heapq.heapify(self._heap)
