"""Who serves what in one project, as far as this process knows. Threaded: written by the thread of the DHT's event loop
(failures and successes by any), read by any.

Readers get immutable snapshots; the lock is held while a changed one is made. `now` is monotonic seconds throughout.
A snapshot that time has changed (a record expired, a suspicion ended) is made anew by the reader who comes first.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import msgspec

from learning_at_home.clock import Clock
from learning_at_home.dht.exchange import Found
from learning_at_home.dht.records import Record, RecordVerifier
from learning_at_home.directory.announcement import Announcement, Claim, layer_key
from learning_at_home.directory.layer_claims import Entry, LayerClaims, RivalClaim, outranks
from learning_at_home.directory.suspicions import Suspicion, Suspicions
from learning_at_home.errors import WireError
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.peer_address import PeerAddress
from learning_at_home.project import ProjectRecord

__all__ = ["Announced", "Directory", "LayerView", "RecordSource", "RivalClaim", "Suspicion", "outranks"]

FOREVER = float("inf")


class RecordSource(Protocol):
    """What a directory asks of a DHT: DhtNode has it, and so have the tests' fakes."""

    async def find_many(self, keys: Iterable[bytes]) -> dict[bytes, Found]: ...


@dataclass(frozen=True, slots=True)
class LayerView:
    """One layer at one moment. `version` grows with every change of `holders`: compare it before recomputing."""

    prefix: str
    version: int
    holders: tuple[PeerAddress | None, ...]  # one per cell, in flat order; None: nobody that is alive
    num_alive: int
    updated_s: float | None  # monotonic time of the last refresh that reached a peer; None: never

    def age_s(self, now: float) -> float:
        """Seconds since the DHT was last asked and answered; infinite if never."""
        return FOREVER if self.updated_s is None else max(0.0, now - self.updated_s)


@dataclass(frozen=True, slots=True)
class Announced:
    """One node's announcement, the claims of all layers together, as the DHT holds it."""

    public_key: bytes
    announcement: Announcement
    sequence: int
    expires_ms: int  # UTC
    suspected: bool  # by calls of this process


class Directory:
    """The directory of one project. `clock` is the one that the callers' `now` comes from."""

    def __init__(self, project: ProjectRecord, clock: Clock) -> None:
        self.project = project
        self.num_malformed = 0  # records under our keys that are no announcements
        self._clock = clock
        self._verifier = RecordVerifier()
        self._lock = threading.Lock()
        self._suspicions = Suspicions()
        self._prefixes = {layer_key(project.id, layer.prefix): layer.prefix for layer in project.layers}
        self._claims = {layer.prefix: LayerClaims(layer.prefix, layer.cells.num_cells) for layer in project.layers}
        self._views = {
            prefix: LayerView(prefix, 0, (None,) * claims.num_cells, 0, None) for prefix, claims in self._claims.items()
        }
        self._changes_at_s = dict.fromkeys(self._claims, FOREVER)  # when time alone makes a view untrue

    # -- written on the loop's thread

    async def refresh(self, dht: RecordSource, prefixes: Iterable[str] | None = None) -> frozenset[str]:
        """The prefixes whose view changed. All layers, or those named, are asked for at once. Raises UnknownLayer."""
        wanted = [self.project.layer(prefix).prefix for prefix in (self._claims if prefixes is None else prefixes)]
        keys = {prefix: layer_key(self.project.id, prefix) for prefix in wanted}
        found = await dht.find_many(keys.values())
        changed = set()
        for prefix, key in keys.items():
            answer = found[key]
            with self._lock:
                for record in (*answer.records, *answer.tombstones):
                    self._take(prefix, record)
                if answer.num_answered:
                    self._views[prefix] = replace(self._views[prefix], updated_s=self._clock.monotonic_s())
                if self._rebuild(prefix):
                    changed.add(prefix)
        return frozenset(changed)

    def feed(self, record: Record) -> bool:
        """Whether this record changed a view. It is verified here; what is invalid, foreign or old is ignored."""
        prefix = self._prefixes.get(record.key)
        if prefix is None:
            return False
        with self._lock:
            if self._verifier.refusal(record, int(self._clock.wall_s() * 1000)) is not None:
                return False
            return self._take(prefix, record) and self._rebuild(prefix)

    def prune(self) -> frozenset[str]:
        """Forget what expired; the prefixes whose view changed by that."""
        with self._lock:
            self._suspicions.prune(self._clock.monotonic_s())
            for claims in self._claims.values():
                claims.prune(self._clock.wall_s() * 1000)
            return frozenset(prefix for prefix in self._claims if self._rebuild(prefix))

    # -- any thread

    def layer(self, prefix: str) -> LayerView:
        """Who serves the layer now. Microseconds, unless time has changed it. Raises UnknownLayer."""
        if prefix not in self._changes_at_s:
            self.project.layer(prefix)  # raises UnknownLayer, with the layers there are
        if self._clock.monotonic_s() >= self._changes_at_s[prefix]:
            with self._lock:
                self._rebuild(prefix)
        return self._views[prefix]

    def find(self, uid: ExpertUid | str) -> PeerAddress | None:
        """Who serves this expert now, if anyone. Raises InvalidUid or UnknownLayer."""
        uid = ExpertUid.parse(uid) if isinstance(uid, str) else uid
        cell = self.project.layer(uid.prefix).cells.cell(uid)
        return self.layer(uid.prefix).holders[cell]

    def report_failure(self, public_key: bytes, now: float) -> None:
        """A call to this peer timed out or its connection broke: out of the views for 1 s, then 2, 4 ... 30.

        Further failures while it is out count once: they are of calls that were already under way.
        """
        with self._lock:
            theirs = self._layers_of(public_key)
            if theirs and self._suspicions.fail(public_key, now):
                for prefix in theirs:
                    self._rebuild(prefix)

    def report_success(self, public_key: bytes) -> None:
        """This peer answered: it is back in the views, and its next failure costs 1 s again."""
        if public_key not in self._suspicions.by_key:  # nearly always; no lock on the way of every call
            return
        with self._lock:
            if self._suspicions.clear(public_key):
                for prefix in self._layers_of(public_key):
                    self._rebuild(prefix)

    def suspected(self, now: float) -> tuple[Suspicion, ...]:
        """Peers that are out of the views now because of failures reported here."""
        with self._lock:
            return self._suspicions.active(now)

    def all_announcements(self) -> tuple[Announced, ...]:
        """What every node announced that has not expired, also of nodes that drain or pause; in order of key."""
        now, wall_ms = self._clock.monotonic_s(), self._clock.wall_s() * 1000
        newest: dict[bytes, Entry] = {}
        claimed: dict[bytes, list[Claim]] = {}
        with self._lock:
            for claims in self._claims.values():
                for key, entry in claims.entries.items():
                    if entry.announcement is None or wall_ms >= entry.expires_ms:
                        continue
                    claimed.setdefault(key, []).extend(claims.claims_of(entry))
                    if key not in newest or entry.sequence > newest[key].sequence:
                        newest[key] = entry
            suspected = {suspicion.public_key for suspicion in self._suspicions.active(now)}
        return tuple(
            Announced(
                public_key=key,
                announcement=msgspec.structs.replace(entry.announcement, claims=tuple(claimed[key])),
                sequence=entry.sequence,
                expires_ms=entry.expires_ms,
                suspected=key in suspected,
            )
            for key, entry in sorted(newest.items())
            if entry.announcement is not None
        )

    def strongest_rivals(self, prefix: str, cells: Collection[int], public_key: bytes) -> dict[int, RivalClaim]:
        """The strongest claim of anybody else, who is online, to each of these cells; see `outranks`."""
        self.project.layer(prefix)
        with self._lock:
            return self._claims[prefix].strongest_rivals(cells, public_key, self._clock.wall_s() * 1000)

    # -- with the lock held

    def _take(self, prefix: str, record: Record) -> bool:
        announcement: Announcement | None = None
        if not record.is_tombstone:
            try:
                announcement = Announcement.from_bytes(record.value)
            except WireError:
                self.num_malformed += 1
                return False
            if announcement.project != self.project.id:
                self.num_malformed += 1
                return False
        entry = Entry.of(record.publisher, record.sequence, record.expires_ms, announcement)
        return self._claims[prefix].put(record.publisher, entry)

    def _rebuild(self, prefix: str) -> bool:
        """Make the view anew: whether its holders changed."""
        now, wall_ms = self._clock.monotonic_s(), self._clock.wall_s() * 1000
        claims, old = self._claims[prefix], self._views[prefix]
        back_at_s = {suspicion.public_key: suspicion.until_s for suspicion in self._suspicions.active(now)}
        holders = claims.holders(wall_ms, frozenset(back_at_s))
        if holders != old.holders:
            num_alive = len(holders) - holders.count(None)
            self._views[prefix] = LayerView(prefix, old.version + 1, holders, num_alive, old.updated_s)
        expiries_s = {
            key: now + (entry.expires_ms - wall_ms) / 1000
            for key, entry in claims.entries.items()
            if entry.is_serving(wall_ms)
        }
        self._changes_at_s[prefix] = min(
            (back_at_s.get(key, at_s) for key, at_s in expiries_s.items()), default=FOREVER
        )
        return holders != old.holders

    def _layers_of(self, public_key: bytes) -> list[str]:
        return [prefix for prefix, claims in self._claims.items() if public_key in claims.entries]
