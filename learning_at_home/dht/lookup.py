"""Kademlia's iterative lookup. Pure: `now` is passed in. crawl.py asks what it wants asked.

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

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from learning_at_home.dht.address_blocks import BlockLimits
from learning_at_home.dht.contacts import Contact

ALPHA = 10  # at 5 % loss each way nine of ten answer at once; more would only be asked sooner, not less often
SPARE = (
    3  # questions beyond the answers still needed: where one in five is lost or dead, five of eight come nearly always
)
LATE = 3  # times what the others took, of what was expected of them: then another is asked, as if it were overdue
LEAST_LATE_S = 0.0005  # and so much for each answer needed: our own loop takes it to read them, one after the other
LEAST_LATE_MORE_S = 0.00003  # and for each other lookup of the crawl that an answer may be for
PATH_WIDTH = 2  # of each teller's nearest are asked, so that one may be dead or its answer lost
PATH_DEATHS = 2  # of a teller's nearest may be dead before its path ends; a liar's false ones cost no more
HOPELESS = 5  # times its patience: it was asked three times by then, and the last answer would be here
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
        share, least_s = haste
        patience_s = self.patience_s
        share_s = share * patience_s
        if share_s < least_s:
            share_s = least_s
        return self.asked_s + (share_s if share_s < patience_s else patience_s)

    def first_overdue_s(self, haste: _Haste) -> float:
        """The earliest moment at which it can be overdue, however quick others are."""
        assert self.asked_s is not None
        return self.asked_s + (haste.least_s if haste.least_s < self.patience_s else self.patience_s)

    def next_change_s(self, now: float, haste: _Haste) -> float:
        """When it may be overdue, or is hopeless; infinity when it is."""
        if now < (first_s := self.first_overdue_s(haste)):
            return first_s
        if now < (overdue_s := self.overdue_s(haste)):
            return overdue_s
        return self.hopeless_s if now < self.hopeless_s else math.inf

    @property
    def hopeless_s(self) -> float:
        assert self.asked_s is not None
        return self.asked_s + HOPELESS * self.patience_s

    def counts(self, now: float, haste: _Haste) -> bool:
        """Whether it may be alive, for all that is known."""
        if self.has_answered:
            return True
        return not self.has_failed and (self.asked_s is None or now < self.overdue_s(haste))


_distance = attrgetter("distance")


@dataclass(slots=True)
class _View:
    """What a lookup is like at a moment."""

    front: list[_Peer]  # the k closest that may be alive
    members: set[_Peer]  # the same
    awaited: list[_Peer]  # those under way whose answers may come in time
    ends: list[_Peer]  # see Lookup._find_open_ends
    num_answered: int  # of the front


@dataclass(slots=True, eq=False)
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
    at_once: int = ALPHA
    num_beside: int = 0  # lookups of the same crawl
    is_telling: bool = False  # the closest something, and asks them nothing
    num_asked: int = 0
    _peers: dict[int, _Peer] = field(default_factory=dict)  # by the number of their ids
    _nearest_first: list[_Peer] = field(default_factory=list)  # the same
    _open_paths: list[list[_Peer]] = field(default_factory=list)  # per teller: whom it told of that is nearest
    _has_blocks: bool = False
    _under_way: set[_Peer] = field(default_factory=set)
    _num_answered: int = 0
    _took_s: float = 0.0  # those who answered, together
    _expected_s: float = 0.0  # the patience with them
    _view_of: tuple[float, _View] | None = None  # of the moment at which it was looked at last
    _lacks_room: bool = False  # some are wanted for whom there was no room
    _looked_s: float = -math.inf
    _num_overdue_then: int = 0
    idle_until_s: float = -math.inf
    _place: int = 0  # the target as a number
    _own: int = 0
    _least_late_s: float = 0.0

    def __post_init__(self) -> None:
        self._place = int.from_bytes(self.target, "big")
        self._own = int.from_bytes(self.own_id, "big")
        self._least_late_s = self.need * (LEAST_LATE_S + LEAST_LATE_MORE_S * self.num_beside)

    def add(self, contacts: Iterable[Contact]) -> None:
        """Peers that may be asked."""
        self._note_news()
        self._see_all(contacts)

    def next_to_ask(self, now: float) -> list[Contact]:
        """Peers to ask at this moment; they count as asked from here on."""
        view = self._view(now)
        room = max(0, min(self.at_once - len(view.awaited), MAX_ASKED - self.num_asked))
        return [self._ask(peer, now) for peer in self._wanted(view)[:room]]

    def join(self, contact: Contact, now: float) -> bool:
        """Whether one that is asked for another target anyway shall be asked for this one too (and counts as asked)."""
        peer = self._peers.get(contact.number)
        if peer is None or peer.asked_s is not None or self.num_asked >= MAX_ASKED:
            return False
        view = self._view(now)
        if peer not in view.members or view.num_answered + len(view.awaited) >= self.need + self.spare:
            return False
        self._ask(peer, now)
        return True

    def answered(self, contact: Contact, told: Mapping[int, Contact], now: float) -> None:
        """It answered, and told us of these peers, by the number of their ids."""
        peer = self._peers[contact.number]
        assert peer.asked_s is not None
        self._took_s += max(0.0, now - peer.asked_s)
        self._expected_s += peer.patience_s
        self._under_way.discard(peer)
        peer.has_answered = True
        self._num_answered += 1
        self._view_of = None
        num_known = len(self._peers)
        if not told.keys() <= self._peers.keys():
            new = [other for number, other in told.items() if number not in self._peers]
            self._see_all(heapq.nsmallest(self.k, new, key=lambda other: other.number ^ self._place))
        told_news = self._open_path(told) or len(self._peers) > num_known
        if told_news or self._lacks_room or self._num_answered >= self.need or not self._under_way:
            self.idle_until_s = -math.inf
        elif now >= self._looked_s + self._least_late_s:  # others may be overdue by what this one took
            self._looked_s = now
            if self._num_overdue(now) != self._num_overdue_then:
                self.idle_until_s = -math.inf

    def failed(self, contact: Contact) -> None:
        self._note_news()
        peer = self._peers[contact.number]
        self._under_way.discard(peer)
        peer.has_failed = True

    def is_idle(self, now: float) -> bool:
        """Whether it has nobody to ask and is not done, for all that came since `rest`."""
        return now < self.idle_until_s

    def rest(self, now: float) -> None:
        """All who are to be asked now are. It is idle until time alone may make a difference, or news do."""
        self._looked_s, self._num_overdue_then = now, self._num_overdue(now)
        self._lacks_room = bool(self._wanted(self._view(now)))
        self.idle_until_s = self.next_change_s(now)

    def is_done(self, now: float) -> bool:
        """Enough of the closest have answered, and every path has come to its end.

        The overdue are not waited for when enough others have answered; where there are none, or where most of the
        closest are to be told something and have not answered, a little longer.
        """
        view = self._view(now)
        is_enough = view.num_answered >= self.need
        if not is_enough and not view.members.isdisjoint(view.awaited):
            return False
        if any(peer in view.ends for peer in view.awaited) or (self.num_asked < MAX_ASKED and self._wanted(view)):
            return False
        if is_enough and (not self.is_telling or 2 * self._num_late(now) <= self.k):
            return True
        return not any(now < peer.hopeless_s for peer in self._under_way)

    def next_change_s(self, now: float) -> float:
        """When time alone may make a difference; infinity: never."""
        haste = self._haste
        return min([peer.next_change_s(now, haste) for peer in self._under_way], default=math.inf)

    def postpone(self, by_s: float) -> None:
        """Nobody was looking for so long: who is asked gets that time again."""
        self._note_news()
        for peer in self._under_way:
            assert peer.asked_s is not None
            peer.asked_s += by_s

    @property
    def num_answered(self) -> int:
        return self._num_answered

    def closest(self) -> list[Contact]:
        """The k closest peers that answered, the closest first."""
        return [peer.contact for peer in self._nearest(peer for peer in self._nearest_first if peer.has_answered)]

    def num_nearer(self, distance: int) -> int:
        """How many that did not fail are nearer to the target than this."""
        nearer = itertools.takewhile(lambda peer: peer.distance < distance, self._nearest_first)
        return sum(not peer.has_failed for peer in nearer)

    def telling(self, k: int, work_s: float = 0.0) -> Lookup:
        """Another, for the k closest of those that this one has found, all of them at once, whom it found late too.

        `work_s`: what it may take a peer to do what it is told.
        """

        def patience_s(contact: Contact) -> float:
            return self.patience_s(contact) + work_s

        other = Lookup(self.target, self.own_id, k, k, patience_s, self.limits, 0, k, self.num_beside, is_telling=True)
        living = (peer.contact for peer in self._nearest_first if not peer.has_failed)
        other.add(itertools.islice(living, MAX_ASKED))
        return other

    def _num_overdue(self, now: float) -> int:
        haste = self._haste
        return len([None for peer in self._under_way if now >= peer.overdue_s(haste)])

    def _num_late(self, now: float) -> int:
        """Of the k closest that answered or may yet, those that have not: far away, busy or dead."""
        hoped_for = {peer for peer in self._under_way if now < peer.hopeless_s}
        if not hoped_for:
            return 0
        nearest = self._nearest(peer for peer in self._nearest_first if peer.has_answered or peer in hoped_for)
        return sum(not peer.has_answered for peer in nearest)

    def _note_news(self) -> None:
        self._view_of = None
        self.idle_until_s = -math.inf

    def _see_all(self, contacts: Iterable[Contact]) -> None:
        """Note those that are new, oneself never."""
        peers, own, place = self._peers, self._own, self._place
        new = [contact for contact in contacts if contact.number not in peers and contact.number != own]
        if not new:
            return
        for contact in new:
            if contact.number not in peers:
                peer = _Peer(contact, contact.number ^ place, self.limits.block(contact.ip))
                peers[contact.number] = peer
                self._has_blocks |= bool(peer.block)
                self._nearest_first.append(peer)
        self._nearest_first.sort(key=_distance)

    def _open_path(self, told: Mapping[int, Contact]) -> bool:
        """Follow the nearest that a peer told of: whether one of them may have to be asked.

        Where the very nearest has answered already the path is at its end.
        """
        nearest_first = (peer for peer in self._nearest_first if peer.contact.number in told)
        nearest = next(nearest_first, None)
        if nearest is None or nearest.has_answered:
            return False
        path = [nearest, *itertools.islice(nearest_first, PATH_WIDTH + PATH_DEATHS - 1)]
        self._open_paths.append(path)
        return any(peer.asked_s is None for peer in path)

    def _ask(self, peer: _Peer, now: float) -> Contact:
        peer.asked_s, peer.patience_s = now, self.patience_s(peer.contact)
        self._under_way.add(peer)
        self.num_asked += 1
        self.idle_until_s = min(self.idle_until_s, peer.first_overdue_s(self._haste))
        if self._view_of is not None:
            self._view_of[1].awaited.append(peer)
        return peer.contact

    @property
    def _haste(self) -> _Haste:
        """Given what those that answered took of their patience.

        Patience rests on round trips of long ago, or of a busy moment, and has a floor: where peers are much quicker
        than that, one of whom nothing is heard yet is likely dead.
        """
        share = LATE * self._took_s / self._expected_s if self._expected_s else 1.0
        return _Haste(share, self._least_late_s)

    def _view(self, now: float) -> _View:
        """Found once for a moment, until something comes; asking changes it in one place only."""
        if self._view_of is None or self._view_of[0] != now:
            haste = self._haste
            front = self._nearest(peer for peer in self._nearest_first if peer.has_answered or peer.counts(now, haste))
            awaited = [peer for peer in self._under_way if now < peer.overdue_s(haste)]
            ends = self._find_open_ends(now, haste) if self._open_paths else []
            num_answered = len([None for peer in front if peer.has_answered])
            self._view_of = (now, _View(front, set(front), awaited, ends, num_answered))
        return self._view_of[1]

    def _wanted(self, view: _View) -> list[_Peer]:
        """Whom to ask if there is room: the paths' ends, then the closest of all until enough of them are asked."""
        wanted = [peer for peer in view.ends if peer.asked_s is None]
        missing = self.need - view.num_answered
        if missing > 0 and (unasked := [peer for peer in view.front if peer.asked_s is None]):
            awaited = view.awaited
            spare = self.spare if len(awaited) == len(self._under_way) else SPARE  # the dead are seldom alone
            missing += spare - len(view.members.intersection(awaited))
            wanted += [peer for peer in unasked[: max(0, missing)] if peer not in wanted]
        return wanted

    def _find_open_ends(self, now: float, haste: _Haste) -> list[_Peer]:
        """Of each path where none of these has answered its nearest that may be alive; the first of each come first."""
        ends: dict[_Peer, int] = {}
        self._open_paths = [path for path in self._open_paths if not path[0].has_answered]
        for path in self._open_paths:
            alive = [peer for peer in path if peer.counts(now, haste)][:PATH_WIDTH]
            if any(peer.has_answered for peer in alive):
                continue
            for rank, peer in enumerate(alive):
                ends[peer] = min(rank, ends.get(peer, rank))
        return sorted(ends, key=lambda peer: (ends[peer], peer.distance))

    def _nearest(self, peers: Iterable[_Peer]) -> list[_Peer]:
        """The first k of these, and of each address block only the first few."""
        if not self._has_blocks:
            return list(itertools.islice(peers, self.k))
        nearest: list[_Peer] = []
        of_block: Counter[bytes] = Counter()
        for peer in peers:
            if not peer.block or self.limits.counts(peer.contact.ip, of_block):
                nearest.append(peer)
                if len(nearest) == self.k:
                    break
        return nearest
