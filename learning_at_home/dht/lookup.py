"""Kademlia's iterative lookup, as a pure core and a small async driver; one crawl may serve several targets.

Beside the package's crawl, which asks in rounds: there one dead peer holds up a whole round for its timeout, a round's
first value ends the search, and of several values the most common one wins. Here ALPHA questions are always under way
(one that is overdue no longer counts, so the dead cost no parallelism), and what all asked peers hold is merged: see
records.newest_per_publisher. The search ends when `need` of the k closest peers seen have answered, whichever they are,
so that no single lost datagram is waited for.

Every peer that answers opens a path of its own, as in S/Kademlia: the search also follows the PATH_WIDTH peers nearest
to the target that it told of, whatever others told. Honest peers tell of the same ones, so this costs next to nothing;
a liar's false neighbours, however near, cannot crowd out those that an honest one told of.
Source: Maymounkov & Mazières, 2002, section 2.3; Baumgart & Mies, S/Kademlia, 2007, section 4.4.
"""

from __future__ import annotations

import asyncio
import bisect
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from learning_at_home.clock import Clock
from learning_at_home.dht.address_blocks import BlockLimits
from learning_at_home.dht.contacts import Contact

ALPHA = 10  # at 5 % loss each way nine of ten answer at once; more would only be asked sooner, not less often
SPARE = (
    3  # questions beyond the answers still needed: where one in five is lost or dead, five of eight come nearly always
)
LATE = 3  # times what the others took, of what was expected of them: then another is asked, as if it were overdue
LEAST_LATE_S = 0.0005  # and so much for each answer needed: our own loop takes it to read them, one after the other
PATH_WIDTH = 2  # of each teller's nearest are asked, so that one may be dead or its answer lost
PATH_DEATHS = 2  # of a teller's nearest may be dead before its path ends; a liar's false ones cost no more
HOPELESS = 5  # times its patience: it was asked three times by then, and the last answer would be here
STALL_S = 0.03  # a timer this late means that nobody was looking: the answers may lie unread in the socket
MAX_ASKED = 128  # a lookup among a million peers asks fewer; a lying neighbourhood cannot make it endless


class _Haste(NamedTuple):
    """How much of its patience a peer gets: this share, and so much at least."""

    share: float
    least_s: float


@dataclass(slots=True, eq=False)
class _Peer:
    contact: Contact
    distance: int
    block: bytes  # of addresses, of which only a few count
    asked_s: float | None = None  # None: not asked yet
    patience_s: float = 0.0
    has_answered: bool = False
    has_failed: bool = False

    def overdue_s(self, haste: _Haste) -> float:
        """When it has had its share of patience. Only for one that was asked."""
        assert self.asked_s is not None
        return self.asked_s + min(self.patience_s, max(haste.least_s, haste.share * self.patience_s))

    @property
    def hopeless_s(self) -> float:
        assert self.asked_s is not None
        return self.asked_s + HOPELESS * self.patience_s

    def is_awaited(self, now: float, haste: _Haste) -> bool:
        """Asked, and its answer may come in time."""
        return (
            self.asked_s is not None and not self.has_answered and not self.has_failed and now < self.overdue_s(haste)
        )

    def counts(self, now: float, haste: _Haste) -> bool:
        """Whether it may be alive, for all that is known."""
        return not self.has_failed and (self.asked_s is None or self.has_answered or now < self.overdue_s(haste))


@dataclass(slots=True)
class Lookup:
    """Who is to be asked next, and who is closest, given what came back. `own_id` is never asked.

    `k`: how many closest peers hold what belongs under the target; `need`: how many of them must answer.
    `patience_s`: after how long a peer is overdue. `limits`: of one address block only a few count among the closest.
    """

    target: bytes
    own_id: bytes
    k: int
    need: int
    patience_s: Callable[[Contact], float]
    limits: BlockLimits
    spare: int = SPARE  # fewer where hardly anything is lost
    num_asked: int = 0
    _peers: dict[int, _Peer] = field(default_factory=dict)  # by distance
    _distances: list[int] = field(default_factory=list)  # the same, sorted
    _paths: list[list[_Peer]] = field(default_factory=list)  # per teller: whom it told of that is nearest
    _under_way: set[int] = field(default_factory=set)
    _num_answered: int = 0
    _took_s: float = 0.0  # those who answered, together
    _expected_s: float = 0.0  # the patience with them
    _front_of: tuple[float, list[_Peer]] | None = None  # of the moment at which it was looked for last
    _ends_of: tuple[float, list[_Peer]] | None = None
    _place: int = 0  # the target as a number

    def __post_init__(self) -> None:
        self._place = int.from_bytes(self.target, "big")

    def add(self, contacts: Iterable[Contact]) -> None:
        """Peers that may be asked."""
        self._front_of = self._ends_of = None
        for contact in contacts:
            self._see(contact)

    def next_to_ask(self, now: float) -> list[Contact]:
        """Peers to ask at this moment; they count as asked from here on."""
        room = min(ALPHA - len(self._awaited(now)), MAX_ASKED - self.num_asked)
        return [self._ask(peer, now) for peer in self._wanted(now)[: max(0, room)]]

    def join(self, contact: Contact, now: float) -> bool:
        """Whether one that is asked for another target anyway shall be asked for this one too (and counts as asked)."""
        peer = self._peers.get(contact.number ^ self._place)
        if peer is None or peer.asked_s is not None or self.num_asked >= MAX_ASKED or peer not in self._front(now):
            return False
        self._ask(peer, now)
        return True

    def answered(self, contact: Contact, told: Iterable[Contact], now: float) -> None:
        """It answered, and told us of these peers."""
        self._front_of = self._ends_of = None
        peer = self._peers[contact.number ^ self._place]
        assert peer.asked_s is not None
        self._took_s += max(0.0, now - peer.asked_s)
        self._expected_s += peer.patience_s
        self._under_way.discard(peer.distance)
        peer.has_answered = True
        self._num_answered += 1
        seen = [other for other in map(self._see, told) if other is not None]
        seen.sort(key=lambda other: other.distance)
        self._paths.append(seen[: PATH_WIDTH + PATH_DEATHS])

    def failed(self, contact: Contact) -> None:
        self._front_of = self._ends_of = None
        distance = contact.number ^ self._place
        self._under_way.discard(distance)
        self._peers[distance].has_failed = True

    def is_done(self, now: float) -> bool:
        """Enough of the closest have answered, and every path has come to its end.

        The overdue are not waited for when enough others have answered; where there are none, a little longer.
        """
        front, awaited = self._front(now), self._awaited(now)
        is_enough = sum(peer.has_answered for peer in front) >= self.need
        if not is_enough and any(peer in front for peer in awaited):
            return False
        ends = self._open_ends(now)
        if any(peer in ends for peer in awaited) or (self.num_asked < MAX_ASKED and self._wanted(now)):
            return False
        return is_enough or not any(now < self._peers[distance].hopeless_s for distance in self._under_way)

    def next_change_s(self, now: float) -> float | None:
        """When time alone may make a difference."""
        peers, haste = [self._peers[distance] for distance in self._under_way], self._haste
        moments = (moment for peer in peers for moment in (peer.overdue_s(haste), peer.hopeless_s))
        return min((moment for moment in moments if now < moment), default=None)

    def postpone(self, by_s: float) -> None:
        """Nobody was looking for so long: who is asked gets that time again."""
        self._front_of = self._ends_of = None
        for distance in self._under_way:
            peer = self._peers[distance]
            assert peer.asked_s is not None
            peer.asked_s += by_s

    @property
    def num_answered(self) -> int:
        return self._num_answered

    def closest(self) -> list[Contact]:
        """The k closest peers that answered, the closest first."""
        peers = (peer for peer in map(self._peers.__getitem__, self._distances) if peer.has_answered)
        return [peer.contact for peer in self._nearest(peers)]

    def _see(self, contact: Contact) -> _Peer | None:
        """None for oneself."""
        if contact.node_id == self.own_id:
            return None
        distance = contact.number ^ self._place
        peer = self._peers.get(distance)
        if peer is None:
            peer = self._peers[distance] = _Peer(contact, distance, self.limits.block(contact.ip))
            bisect.insort(self._distances, distance)
        return peer

    def _ask(self, peer: _Peer, now: float) -> Contact:
        peer.asked_s, peer.patience_s = now, self.patience_s(peer.contact)
        self._under_way.add(peer.distance)
        self.num_asked += 1
        return peer.contact

    @property
    def _haste(self) -> _Haste:
        """Given what those that answered took of their patience.

        Patience rests on round trips of long ago, or of a busy moment, and has a floor: where peers are much quicker
        than that, one of whom nothing is heard yet is likely dead.
        """
        share = LATE * self._took_s / self._expected_s if self._expected_s else 1.0
        return _Haste(share, self.need * LEAST_LATE_S)

    def _awaited(self, now: float) -> list[_Peer]:
        """Those under way whose answers may come in time."""
        haste = self._haste
        peers = map(self._peers.__getitem__, self._under_way)
        return [peer for peer in peers if peer.is_awaited(now, haste)]

    def _wanted(self, now: float) -> list[_Peer]:
        """Whom to ask if there is room: the paths' ends, then the closest of all until enough of them are asked."""
        wanted = [peer for peer in self._open_ends(now) if peer.asked_s is None]
        front = self._front(now)
        missing = self.need - sum(peer.has_answered for peer in front)
        if missing > 0:
            awaited = self._awaited(now)
            spare = self.spare if len(awaited) == len(self._under_way) else SPARE  # the dead are seldom alone
            missing += spare - sum(peer in front for peer in awaited)
            unasked = [peer for peer in front if peer.asked_s is None]
            wanted += [peer for peer in unasked[: max(0, missing)] if peer not in wanted]
        return wanted

    def _front(self, now: float) -> list[_Peer]:
        """The k closest that may be alive; found once for a moment, which asking changes nothing of."""
        if self._front_of is None or self._front_of[0] != now:
            self._front_of = (now, self._find_front(now))
        return self._front_of[1]

    def _find_front(self, now: float) -> list[_Peer]:
        haste = self._haste
        return self._nearest(peer for peer in map(self._peers.__getitem__, self._distances) if peer.counts(now, haste))

    def _nearest(self, peers: Iterable[_Peer]) -> list[_Peer]:
        """The first k of these, and of each address block only the first few."""
        nearest: list[_Peer] = []
        of_block: Counter[bytes] = Counter()
        for peer in peers:
            if not peer.block or self.limits.counts(peer.contact.ip, of_block):
                nearest.append(peer)
                if len(nearest) == self.k:
                    break
        return nearest

    def _open_ends(self, now: float) -> list[_Peer]:
        """Of each path where none of these has answered its nearest that may be alive; the first of each come first."""
        if self._ends_of is None or self._ends_of[0] != now:
            self._ends_of = (now, self._find_open_ends(now))
        return self._ends_of[1]

    def _find_open_ends(self, now: float) -> list[_Peer]:
        ends: dict[int, tuple[int, _Peer]] = {}
        haste = self._haste
        for path in self._paths:
            alive = [peer for peer in path if peer.counts(now, haste)][:PATH_WIDTH]
            if any(peer.has_answered for peer in alive):
                continue
            for rank, peer in enumerate(alive):
                if ends.get(peer.distance, (rank + 1,))[0] > rank:
                    ends[peer.distance] = (rank, peer)
        return [peer for _, peer in sorted(ends.values(), key=lambda end: (end[0], end[1].distance))]


Told = Sequence[Iterable[Contact]]  # per target


async def run_lookups(
    lookups: Sequence[Lookup],
    ask: Callable[[Contact, Sequence[Lookup]], Awaitable[Told | None]],
    clock: Clock,
) -> None:
    """Ask until all are done, a peer once for all the targets that it matters to.

    `ask` returns whom the peer told us of for each of these, or None when it did not answer in its time.
    """
    progress = asyncio.Event()
    open_ones = list(lookups)

    async def ask_one(contact: Contact, concerned: list[Lookup]) -> None:
        told = await ask(contact, concerned)
        for index, lookup in enumerate(concerned):
            if told is None:
                lookup.failed(contact)
            else:
                lookup.answered(contact, told[index], clock.monotonic_s())
        progress.set()

    under_way: set[asyncio.Task[None]] = set()
    async with asyncio.TaskGroup() as tasks:
        while True:
            now = clock.monotonic_s()
            for contact, concerned in _questions(open_ones, now).items():
                task = tasks.create_task(ask_one(contact, concerned))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            open_ones = [lookup for lookup in open_ones if not lookup.is_done(now)]
            if not open_ones:
                break
            progress.clear()
            changes_s = [change_s for lookup in open_ones if (change_s := lookup.next_change_s(now)) is not None]
            change_s = min(changes_s, default=math.inf)
            try:
                async with asyncio.timeout(change_s - now if changes_s else None):
                    await progress.wait()
            except TimeoutError:
                pass  # someone is overdue: another may be asked in its stead
            late_s = clock.monotonic_s() - change_s
            if late_s > STALL_S:
                for lookup in open_ones:
                    lookup.postpone(late_s + STALL_S)
        for task in under_way:
            task.cancel()


def _questions(lookups: Sequence[Lookup], now: float) -> dict[Contact, list[Lookup]]:
    """Whom to ask now, for which targets."""
    questions: dict[Contact, list[Lookup]] = {}
    for lookup in lookups:
        for contact in lookup.next_to_ask(now):
            questions.setdefault(contact, []).append(lookup)
    if len(lookups) > 1:
        for contact, concerned in questions.items():
            concerned += [lookup for lookup in lookups if lookup not in concerned and lookup.join(contact, now)]
    return questions
