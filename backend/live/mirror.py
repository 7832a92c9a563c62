"""What trainers mirror of one project: every node's newest record, and this coordinator's suspicions. Pure, but for the
event that wakes a subscriber.

Policy: per subscriber only keys wait, each once, so that what comes while a slow trainer reads is merged into the
newest record of each node, and nobody makes us hold more than the keys of the records that we hold anyway. A new
subscriber waits for all keys: that is its snapshot. docs/decisions/0008-live-mirror.md.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from learning_at_home.coordinator_messages import MAX_MIRRORED_RECORDS
from learning_at_home.dht.records import Record, is_newer
from learning_at_home.directory.announcement import node_key
from learning_at_home.directory.coordinator_suspicion import sign_absolution, sign_suspicion
from learning_at_home.errors import NodeOverloaded
from learning_at_home.identity import Identity

MAX_SUBSCRIBERS = 2_000  # per project; a refresh of 1,000 nodes' announcements every 20 s is 27 kB/s for each


class Outgoing(msgspec.Struct, frozen=True, tag="mirrored"):
    """A Mirrored, whose records were encoded once for all subscribers."""

    sequence: int
    complete: bool
    age_s: float
    records: tuple[msgspec.Raw, ...]


@dataclass(frozen=True, slots=True)
class _Held:
    record: Record
    encoded: msgspec.Raw


@dataclass(frozen=True, slots=True)
class _Suspicion:
    since_ms: int
    record: Record


class Subscriber:
    """One trainer's place in the stream. Made by MirrorHub."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        self.pending: dict[bytes, None] = dict.fromkeys(keys)  # of records to be sent, in order
        self.sequence = 0
        self.complete = False
        self.closed = False
        self._wake = asyncio.Event()

    def offer(self, key: bytes) -> None:
        self.pending[key] = None
        self._wake.set()

    def close(self) -> None:
        self.closed = True
        self._wake.set()

    async def wait(self) -> None:
        """Return when something waits, or the hub was closed."""
        if not self.pending and not self.closed:
            self._wake.clear()
            await self._wake.wait()


class MirrorHub:
    """One project's records and who is told of them."""

    def __init__(self, project: str, identity: Identity) -> None:
        self._project = project
        self._identity = identity
        self._held: dict[bytes, _Held] = {}  # by the record's key: of nodes, and of suspicions
        self._suspicions: dict[bytes, _Suspicion] = {}  # by node
        self._looked_s: float | None = None
        self._subscribers: set[Subscriber] = set()

    @contextmanager
    def subscribed(self) -> Iterator[Subscriber]:
        """A place in the stream. Raises NodeOverloaded when there are too many."""
        if len(self._subscribers) >= MAX_SUBSCRIBERS:
            raise NodeOverloaded(f"{MAX_SUBSCRIBERS:,} trainers mirror this project already", retry_after_s=60.0)
        subscriber = Subscriber(self._held)
        self._subscribers.add(subscriber)
        try:
            yield subscriber
        finally:
            self._subscribers.discard(subscriber)

    def seen(self, records: Iterable[Record], now: float) -> None:
        """The DHT was asked, and holds these records of the project's nodes; what has expired is forgotten."""
        self._looked_s = now
        for record in records:
            self._put(record)
        now_ms = now * 1000
        self._held = {key: held for key, held in self._held.items() if now_ms < held.record.expires_ms}

    def suspect(self, failed_s: Mapping[bytes, float], now: float) -> None:
        """Exactly these nodes do not answer; `failed_s`: when the last probe of each failed.

        Of those that are new a suspicion is signed; of those that were and are no more it is taken back. A node that
        announced itself since, and did not answer a probe after that, is suspected anew.
        """
        now_ms = int(now * 1000)
        for node in self._suspicions.keys() - failed_s.keys():
            self._put(sign_absolution(self._identity, self._suspicions.pop(node).record, now_ms))
        for node, at_s in failed_s.items():
            since_ms, known = int(at_s * 1000), self._suspicions.get(node)
            if known is not None and not known.since_ms < self._issued_ms(node) <= since_ms:
                continue
            sequence = max(now_ms, known.record.sequence + 1) if known is not None else now_ms
            record = sign_suspicion(self._identity, self._project, node, since_ms, sequence=sequence)
            self._suspicions[node] = _Suspicion(since_ms, record)
            self._put(record)

    def take(self, subscriber: Subscriber, now: float) -> Outgoing:
        """The next message for a subscriber; without records when none wait."""
        keys = list(subscriber.pending)[:MAX_MIRRORED_RECORDS]
        for key in keys:
            del subscriber.pending[key]
        records = tuple(self._held[key].encoded for key in keys if key in self._held)
        subscriber.complete = self._looked_s is not None and (subscriber.complete or not subscriber.pending)
        age_s = max(0.0, now - self._looked_s) if self._looked_s is not None else 0.0
        message = Outgoing(subscriber.sequence, subscriber.complete, age_s, records)
        subscriber.sequence += 1
        return message

    def close(self) -> None:
        """Let all subscribers go."""
        for subscriber in self._subscribers:
            subscriber.close()

    def _issued_ms(self, node: bytes) -> int:
        """By the node's clock, when it last announced itself."""
        held = self._held.get(node_key(self._project, node))
        return held.record.sequence if held is not None else 0

    def _put(self, record: Record) -> None:
        held = self._held.get(record.key)
        if held is not None and not is_newer(record, held.record):
            return
        encoded = msgspec.Raw(b'"' + base64.b64encode(record.to_bytes()) + b'"')
        self._held[record.key] = _Held(record, encoded)
        for subscriber in self._subscribers:
            subscriber.offer(record.key)
