"""Who serves what in one project, as far as this process knows. Threaded: written by the thread of the DHT's event loop
(failures and successes by any), read by any.

Readers get immutable snapshots; the lock is held while a changed one is made. `now` is monotonic seconds throughout.
A snapshot that time has changed (a record expired, a suspicion ended) is made anew by the reader who comes first.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from learning_at_home.clock import Clock
from learning_at_home.dht.records import Record, RecordVerifier, Refusal
from learning_at_home.directory.announcement import Announcement, node_key
from learning_at_home.directory.beam_search import BeamSearch, LineScores
from learning_at_home.directory.layer_claims import Entry, LayerClaims, RivalClaim, claimed_cells, outranks
from learning_at_home.directory.layer_walk import PrefixReader, SlotSource, walk_layer
from learning_at_home.directory.suspicions import Suspicion, Suspicions, ToldSuspicion
from learning_at_home.errors import WireError
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.peer_address import PeerAddress
from learning_at_home.project import ProjectRecord

__all__ = ["Announced", "Directory", "LayerView", "RivalClaim", "SlotSource", "Suspicion", "outranks"]

FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class LayerView:
    """One layer at one moment. `version` grows with every change of `holders`: compare it before recomputing."""

    prefix: str
    version: int
    holders: tuple[PeerAddress | None, ...]  # one per cell, in flat order; None: nobody that is alive
    num_alive: int
    updated_s: float | None  # monotonic time at which it was known to be so, by the DHT or the mirror; None: never
    is_whole: bool = False  # whether the DHT's last answers told all of it; a layer too large for that is explored

    def age_s(self, now: float) -> float:
        """Seconds since the DHT was last asked and answered, or the mirror was last true; infinite if never."""
        return FOREVER if self.updated_s is None else max(0.0, now - self.updated_s)


@dataclass(frozen=True, slots=True)
class Announced:
    """One node's announcement as the DHT holds it."""

    public_key: bytes
    announcement: Announcement
    sequence: int
    expires_ms: int  # UTC
    suspected: bool  # by calls of this process


class Directory:
    """The directory of one project. `clock` is the one that the callers' `now` comes from."""

    def __init__(self, project: ProjectRecord, clock: Clock) -> None:
        self.project = project
        self.num_malformed = 0  # records under nodes' keys that are no announcements
        self._clock = clock
        self._verifier = RecordVerifier()
        self._lock = threading.Lock()
        self._suspicions = Suspicions()
        self._told: dict[bytes, ToldSuspicion] = {}  # by public key
        self._answered_s: dict[bytes, float] = {}  # public key -> when it last answered a call of this process
        self._nodes: dict[bytes, Entry] = {}  # by public key
        self._claims = {layer.prefix: LayerClaims(layer.prefix, layer.cells) for layer in project.layers}
        self._views = {
            prefix: LayerView(prefix, 0, (None,) * claims.num_cells, 0, None) for prefix, claims in self._claims.items()
        }
        self._searches = {prefix: BeamSearch(claims.grid, clock) for prefix, claims in self._claims.items()}
        self._changes_at_s = dict.fromkeys(self._claims, FOREVER)  # when time alone makes a view untrue

    # -- written on the loop's thread

    async def refresh(self, dht: SlotSource, prefixes: Iterable[str] | None = None) -> frozenset[str]:
        """The prefixes whose view changed. All layers, or those named, are read at once. Raises UnknownLayer."""
        wanted = [self.project.layer(prefix).prefix for prefix in (self._claims if prefixes is None else prefixes)]
        changed: set[str] = set()

        async def read(prefix: str) -> None:
            answered, is_whole = await walk_layer(self._reader(dht, prefix, changed))
            if answered:
                with self._lock:
                    now = self._clock.monotonic_s()
                    self._views[prefix] = replace(self._views[prefix], updated_s=now, is_whole=is_whole)

        await asyncio.gather(*map(read, wanted))
        with self._lock:
            return frozenset(prefix for prefix in wanted if self._rebuild(prefix) or prefix in changed)

    async def explore(self, dht: SlotSource, prefix: str, scores: LineScores, width: int) -> bool:
        """Read what is alive of the best experts for some rows, by a beam search; whether the DHT had to be asked.

        For layers that no refresh can read whole. Raises UnknownLayer.
        """
        self.project.layer(prefix)
        return await self._searches[prefix].run(self._reader(dht, prefix, set()), scores, width)

    def refusal(self, record: Record) -> Refusal | None:
        """Why `feed` would ignore this record, whatever is known: its signature, size or times."""
        return self._verifier.refusal(record, int(self._clock.wall_s() * 1000))

    def feed(self, *records: Record) -> bool:
        """Whether these records changed a view. They are verified here; what is invalid, foreign or old is ignored.

        Many together cost as many views as there are layers, not one each.
        """
        return bool(self._take_all([record for record in records if self.refusal(record) is None]))

    def suspect(self, public_key: bytes, since_ms: int, until_ms: int) -> bool:
        """A coordinator's probes could not reach this peer: out of the views until it announces itself anew.

        Whether that counts: a call of ours that it answered after the coordinator's verdict counts for more, whether
        before this is told or after.
        """
        now, wall_ms = self._clock.monotonic_s(), self._clock.wall_s() * 1000
        answered_s = self._answered_s.get(public_key, -FOREVER)
        if (now - answered_s) * 1000 < wall_ms - since_ms:
            return False
        with self._lock:
            self._told[public_key] = ToldSuspicion(since_ms, until_ms)
            self._rebuild_layers_of(public_key)
        return True

    def absolve(self, public_key: bytes) -> None:
        """The coordinator suspects it no more."""
        with self._lock:
            if self._told.pop(public_key, None) is not None:
                self._rebuild_layers_of(public_key)

    def freshened(self, as_of_s: float) -> None:
        """All layers are known as they were at this monotonic time."""
        with self._lock:
            for prefix, view in self._views.items():
                if view.updated_s is None or view.updated_s < as_of_s:
                    self._views[prefix] = replace(view, updated_s=as_of_s)

    def knows(self, public_key: bytes) -> bool:
        """Whether there is a record of this node."""
        return public_key in self._nodes

    @property
    def num_nodes(self) -> int:
        """Of whom there is a record that has not expired, or not been pruned."""
        return len(self._nodes)

    def is_of_node(self, record: Record) -> bool:
        """Whether it stands under its publisher's own key in this project, as announcements and their ends do."""
        return record.key == node_key(self.project.id, record.publisher)

    def prune(self) -> frozenset[str]:
        """Forget what expired; the prefixes whose view changed by that."""
        with self._lock:
            self._suspicions.prune(self._clock.monotonic_s())
            wall_ms = self._clock.wall_s() * 1000
            self._told = {key: told for key, told in self._told.items() if wall_ms < told.until_ms}
            for key in set(self._answered_s) - self._nodes.keys():
                del self._answered_s[key]
            for key in [key for key, entry in self._nodes.items() if wall_ms >= entry.expires_ms]:
                del self._nodes[key]
                for claims in self._claims.values():
                    claims.entries.pop(key, None)
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

    def announced_cell(self, public_key: bytes) -> tuple[ExpertUid, PeerAddress] | None:
        """One expert that this node announces, whoever suspects it, and how to reach it; None: it serves none."""
        entry = self._nodes.get(public_key)
        if entry is None or not entry.is_serving(self._clock.wall_s() * 1000):
            return None
        for prefix, claims in self._claims.items():
            for cell, _ in claimed_cells(entry.claims, prefix, claims.num_cells):
                return claims.grid.uid(prefix, cell), entry.address
        return None

    def report_failure(self, public_key: bytes, now: float) -> None:
        """A call to this peer timed out or its connection broke: out of the views for 1 s, then 2, 4 ... 30.

        Further failures while it is out count once: they are of calls that were already under way.
        """
        with self._lock:
            if self._layers_of(public_key) and self._suspicions.fail(public_key, now):
                self._rebuild_layers_of(public_key)

    def put_aside(self, public_key: bytes, until_s: float) -> None:
        """This peer answers, but slowly, or fails often: out of the views until then, whatever it answers meanwhile."""
        with self._lock:
            if self._layers_of(public_key):
                self._suspicions.put_aside(public_key, until_s)
                self._rebuild_layers_of(public_key)

    def report_success(self, public_key: bytes) -> None:
        """This peer answered: it is back in the views whoever suspects it, and its next failure costs 1 s again.

        One that was put aside stays so.
        """
        self._answered_s[public_key] = self._clock.monotonic_s()
        # Nearly always so; no lock on the way of every call.
        if public_key not in self._suspicions.by_key and public_key not in self._told:
            return
        with self._lock:
            if self._suspicions.clear(public_key) | (self._told.pop(public_key, None) is not None):
                self._rebuild_layers_of(public_key)

    def put_aside_holder(self, prefix: str, cell: int) -> PeerAddress | None:
        """A peer that serves this cell and was put aside, for whoever has nobody else to ask."""
        with self._lock:
            for claimed, address in self._put_aside(prefix):
                if claimed == cell:
                    return address
        return None

    def num_put_aside(self, prefix: str) -> int:
        """Cells that nobody serves in the view, since their peers were put aside."""
        with self._lock:
            holders = self._views[prefix].holders
            return sum(holders[cell] is None for cell in {cell for cell, _ in self._put_aside(prefix)})

    def suspected(self, now: float) -> tuple[Suspicion, ...]:
        """Peers that are out of the views now because of failures reported here, or since they were put aside."""
        with self._lock:
            return self._suspicions.active(now)

    def all_announcements(self) -> tuple[Announced, ...]:
        """What every node announced that has not expired, also of nodes that drain or pause; in order of key."""
        now, wall_ms = self._clock.monotonic_s(), self._clock.wall_s() * 1000
        with self._lock:
            suspected = {suspicion.public_key for suspicion in self._suspicions.active(now)}
            return tuple(
                Announced(
                    public_key=key,
                    announcement=entry.announcement,
                    sequence=entry.sequence,
                    expires_ms=entry.expires_ms,
                    suspected=key in suspected,
                )
                for key, entry in sorted(self._nodes.items())
                if entry.announcement is not None and wall_ms < entry.expires_ms
            )

    def records(self) -> tuple[Record, ...]:
        """Every node's newest record that has not expired, also those by which nodes withdrew."""
        wall_ms = self._clock.wall_s() * 1000
        with self._lock:
            return tuple(entry.record for entry in self._nodes.values() if wall_ms < entry.expires_ms)

    def strongest_rivals(self, prefix: str, cells: Collection[int], public_key: bytes) -> dict[int, RivalClaim]:
        """The strongest claim of anybody else, who is online, to each of these cells; see `outranks`."""
        self.project.layer(prefix)
        with self._lock:
            return self._claims[prefix].strongest_rivals(cells, public_key, self._clock.wall_s() * 1000)

    def _reader(self, dht: SlotSource, prefix: str, changed: set[str]) -> PrefixReader:
        """`changed` is told the layers whose view what it reads changes."""
        return PrefixReader(
            dht,
            self.project.id,
            self.project.layer(prefix),
            self._claims[prefix].tags_below,
            self._claims[prefix].covered,
            lambda records: changed.update(self._take_all(records)),
        )

    def _take_all(self, records: Iterable[Record]) -> frozenset[str]:
        """Take verified records: the prefixes whose view changed."""
        with self._lock:
            touched = set[str]().union(*map(self._take, records))
            return frozenset(prefix for prefix in touched if self._rebuild(prefix))

    # -- with the lock held

    def _take(self, record: Record) -> frozenset[str]:
        """The layers that this record may change."""
        if not self.is_of_node(record):
            return frozenset()
        held = self._nodes.get(record.publisher)
        if held is not None and held.sequence >= record.sequence:
            return frozenset()
        announcement: Announcement | None = None
        if not record.is_tombstone:
            try:
                announcement = Announcement.from_bytes(record.value)
            except WireError:
                announcement = None
            if announcement is None or announcement.project != self.project.id:
                self.num_malformed += 1
                return frozenset()
        entry = Entry.of(record, announcement)
        if held is not None and held.address == entry.address:
            entry = replace(entry, address=held.address)  # one object, so that unchanged views compare fast
        self._nodes[record.publisher] = entry
        claimed = {claim.prefix for claim in entry.claims} & self._claims.keys()
        before = set(self._layers_of(record.publisher))
        for prefix in claimed:
            self._claims[prefix].entries[record.publisher] = entry
        for prefix in before - claimed:
            del self._claims[prefix].entries[record.publisher]
        return frozenset(before | claimed)

    def _rebuild(self, prefix: str) -> bool:
        """Make the view anew: whether its holders changed."""
        now, wall_ms = self._clock.monotonic_s(), self._clock.wall_s() * 1000
        claims, old = self._claims[prefix], self._views[prefix]
        back_at_s = {suspicion.public_key: suspicion.until_s for suspicion in self._suspicions.active(now)}
        for key, told in self._told.items():
            entry = claims.entries.get(key)
            if entry is not None and entry.sequence <= told.since_ms and wall_ms < told.until_ms:
                until_s = now + (told.until_ms - wall_ms) / 1000
                back_at_s[key] = max(until_s, back_at_s.get(key, until_s))
        holders = claims.holders(wall_ms, frozenset(back_at_s))
        if holders != old.holders:
            num_alive = len(holders) - holders.count(None)
            self._views[prefix] = replace(old, version=old.version + 1, holders=holders, num_alive=num_alive)
        expiries_s = {
            key: now + (entry.expires_ms - wall_ms) / 1000
            for key, entry in claims.entries.items()
            if entry.is_serving(wall_ms)
        }
        self._changes_at_s[prefix] = min(
            (back_at_s.get(key, at_s) for key, at_s in expiries_s.items()), default=FOREVER
        )
        return holders != old.holders

    def _put_aside(self, prefix: str) -> Iterator[tuple[int, PeerAddress]]:
        """Cells of peers that were put aside, and who they are."""
        now, wall_ms = self._clock.monotonic_s(), self._clock.wall_s() * 1000
        claims = self._claims[prefix]
        for suspicion in self._suspicions.active(now):
            entry = claims.entries.get(suspicion.public_key)
            if not suspicion.failures and entry is not None and entry.is_serving(wall_ms):
                for cell, _ in claimed_cells(entry.claims, prefix, claims.num_cells):
                    yield cell, entry.address

    def _rebuild_layers_of(self, public_key: bytes) -> None:
        for prefix in self._layers_of(public_key):
            self._rebuild(prefix)

    def _layers_of(self, public_key: bytes) -> list[str]:
        return [prefix for prefix, claims in self._claims.items() if public_key in claims.entries]
