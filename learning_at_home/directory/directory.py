"""Who serves what in one project, as far as this process knows.

Written by the thread of the DHT's event loop; read by any thread. Readers get immutable snapshots.
`now` is monotonic seconds throughout. Knows nothing of sockets; `refresh` asks a DHT that it is given.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from learning_at_home.clock import Clock
from learning_at_home.dht.node import DhtNode
from learning_at_home.dht.records import Record
from learning_at_home.directory.announcement import Announcement, PeerAddress
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import ProjectRecord


@dataclass(frozen=True, slots=True)
class LayerView:
    """One layer at one moment. `version` grows with every change of `holders`: compare it to know whether to recompute."""

    prefix: str
    version: int
    holders: tuple[PeerAddress | None, ...]  # one per cell, in flat order; None: nobody that is alive
    num_alive: int
    updated_s: float | None  # monotonic time of the last refresh that reached a peer; None: never

    def age_s(self, now: float) -> float:
        """Seconds since the DHT was last asked with an answer; infinite if never."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Announced:
    """One node's announcement (claims of all layers together) as the DHT holds it."""

    public_key: bytes
    announcement: Announcement
    sequence: int
    expires_ms: int  # wall clock of its publisher, corrected
    suspected: bool  # by calls of this process


@dataclass(frozen=True, slots=True)
class RivalClaim:
    """Another node's claim of a cell."""

    public_key: bytes
    name: str
    claimed_ms: int
    endpoints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A peer that this process's calls could not reach."""

    public_key: bytes
    failures: int  # in a row
    until_s: float  # monotonic; out of the views until then


class Directory:
    """The directory of one project. `clock` is the one that the caller's `now` comes from."""

    def __init__(self, project: ProjectRecord, clock: Clock) -> None:
        self.project = project

    # -- written on the loop's thread

    async def refresh(self, dht: DhtNode, prefixes: Iterable[str] | None = None) -> frozenset[str]:
        """The prefixes whose view changed. All layers (or those named) are asked for in parallel."""
        raise NotImplementedError

    def feed(self, record: Record) -> bool:
        """Whether this record changed a view. It is verified here; what is invalid, foreign or old is ignored."""
        raise NotImplementedError

    def prune(self, now: float) -> frozenset[str]:
        """Forget what expired; the prefixes whose view changed."""
        raise NotImplementedError

    # -- any thread

    def layer(self, prefix: str) -> LayerView:
        """Who serves the layer now. Microseconds. Raises UnknownLayer."""
        raise NotImplementedError

    def find(self, uid: ExpertUid | str) -> PeerAddress | None:
        """Who serves this expert now, if anyone. Raises InvalidUid or UnknownLayer."""
        raise NotImplementedError

    def report_failure(self, public_key: bytes, now: float) -> None:
        """A call to this peer timed out or its connection broke: out of the views for 1 s, then 2, 4 ... 30.

        Further failures while it is out count once: they are calls that were already under way.
        """
        raise NotImplementedError

    def report_success(self, public_key: bytes) -> None:
        """This peer answered: it is back in the views, and its next failure costs 1 s again."""
        raise NotImplementedError

    def suspected(self, now: float) -> tuple[Suspicion, ...]:
        """Peers that are out of the views now because of failures reported here."""
        raise NotImplementedError

    def all_announcements(self) -> tuple[Announced, ...]:
        """What every node announced that has not expired (also nodes that drain or pause), in the order of their keys."""
        raise NotImplementedError

    def rivals(self, prefix: str, cell: int, public_key: bytes) -> tuple[RivalClaim, ...]:
        """Who else claims this cell and is online, the strongest claim first; see `outranks`."""
        raise NotImplementedError


def outranks(claimed_ms: int, public_key: bytes, other: RivalClaim) -> bool:
    """Whether a claim goes before another's: the older, then the lower node id. Whoever is outranked yields."""
    raise NotImplementedError
