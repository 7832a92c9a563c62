"""The claims of all nodes to one layer's cells, and who holds each. Pure: times are passed in.

Of two nodes that claim a cell the one whose claim is older holds it, then the one with the lower node id.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from learning_at_home.directory.announcement import Announcement, Claim
from learning_at_home.identity import peer_id
from learning_at_home.peer_address import PeerAddress


@dataclass(frozen=True, slots=True)
class RivalClaim:
    """Another node's claim of a cell."""

    public_key: bytes
    name: str
    claimed_ms: int
    endpoints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One node's newest record in one layer; `announcement` None: it withdrew."""

    sequence: int
    expires_ms: int
    announcement: Announcement | None
    address: PeerAddress
    node_id: bytes

    @classmethod
    def of(cls, public_key: bytes, sequence: int, expires_ms: int, announcement: Announcement | None) -> Entry:
        endpoints = announcement.endpoints if announcement else ()
        name = "".join(c if c.isprintable() else "?" for c in announcement.name) if announcement else ""
        return cls(sequence, expires_ms, announcement, PeerAddress(public_key, endpoints, name), peer_id(public_key))

    def is_serving(self, wall_ms: float) -> bool:
        """Whether it can be called: online, somewhere, and not expired."""
        online = self.announcement is not None and self.announcement.state == "online"
        return online and bool(self.address.endpoints) and wall_ms < self.expires_ms


class LayerClaims:
    """One layer. Not thread-safe: the directory holds its lock around it."""

    def __init__(self, prefix: str, num_cells: int) -> None:
        self.prefix = prefix
        self.num_cells = num_cells
        self.entries: dict[bytes, Entry] = {}

    def put(self, public_key: bytes, entry: Entry) -> bool:
        """Whether it is news: newer than what is known of this node."""
        held = self.entries.get(public_key)
        if held is not None and held.sequence >= entry.sequence:
            return False
        if held is not None and held.address == entry.address:
            entry = replace(entry, address=held.address)  # one object, so that unchanged views compare fast
        self.entries[public_key] = entry
        return True

    def prune(self, wall_ms: float) -> None:
        self.entries = {key: entry for key, entry in self.entries.items() if wall_ms < entry.expires_ms}

    def holders(self, wall_ms: float, suspected: frozenset[bytes]) -> tuple[PeerAddress | None, ...]:
        """Who holds each cell. The suspected hold nothing, so that another claim may show meanwhile."""
        best: dict[int, tuple[int, bytes]] = {}
        holders: list[PeerAddress | None] = [None] * self.num_cells
        for public_key, entry in self.entries.items():
            if public_key in suspected or not entry.is_serving(wall_ms):
                continue
            for cell, claimed_ms in self._cells(entry):
                rank = rank_of(claimed_ms, entry.node_id)
                if cell not in best or rank < best[cell]:
                    best[cell] = rank
                    holders[cell] = entry.address
        return tuple(holders)

    def strongest_rivals(self, cells: Collection[int], public_key: bytes, wall_ms: float) -> dict[int, RivalClaim]:
        """For each of these cells that somebody else, who is online, claims: the strongest such claim. One pass."""
        wanted = frozenset(cells)
        best: dict[int, tuple[int, bytes]] = {}
        rivals: dict[int, RivalClaim] = {}
        for key, entry in self.entries.items():
            if key == public_key or not entry.is_serving(wall_ms):
                continue
            for cell, claimed_ms in self._cells(entry):
                rank = rank_of(claimed_ms, entry.node_id)
                if cell in wanted and (cell not in best or rank < best[cell]):
                    best[cell] = rank
                    rivals[cell] = RivalClaim(key, entry.address.name, claimed_ms, entry.address.endpoints)
        return rivals

    def _cells(self, entry: Entry) -> Iterator[tuple[int, int]]:
        claims = entry.announcement.claims if entry.announcement else ()
        return claimed_cells(claims, self.prefix, self.num_cells)

    def claims_of(self, entry: Entry) -> list[Claim]:
        """What it claims of this layer, the oldest claim first."""
        claims = entry.announcement.claims if entry.announcement else ()
        return sorted((claim for claim in claims if claim.prefix == self.prefix), key=lambda claim: claim.claimed_ms)


def claimed_cells(claims: Iterable[Claim], prefix: str, num_cells: int) -> Iterator[tuple[int, int]]:
    """Cells of a layer's grid that an announcement claims, each once, with the time of the claim (ms)."""
    for claim in claims:
        if claim.prefix == prefix:
            for first, end in claim.spans:
                for cell in range(first, min(end, num_cells)):
                    yield cell, claim.claimed_ms


def rank_of(claimed_ms: int, node_id: bytes) -> tuple[int, bytes]:
    """Of two claims to a cell the one with the lower rank holds it: the older, then that of the lower node id."""
    return (claimed_ms, node_id)


def outranks(claimed_ms: int, public_key: bytes, other: RivalClaim) -> bool:
    """Whether a claim goes before another's: the older, then the lower node id. Whoever is outranked yields."""
    return rank_of(claimed_ms, peer_id(public_key)) < rank_of(other.claimed_ms, peer_id(other.public_key))
