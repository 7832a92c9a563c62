"""The claims of all nodes to one layer's cells, and who holds each. Pure: times are passed in.

Of two nodes that claim a cell the one whose claim is older holds it, then the one with the lower node id.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from learning_at_home.dht.records import Record
from learning_at_home.directory.announcement import Announcement, Claim
from learning_at_home.directory.slot_rule import next_indices
from learning_at_home.errors import WireError
from learning_at_home.expert_uid import Grid
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
    """One node's newest record; `announcement` None: it withdrew."""

    tag: bytes
    sequence: int
    expires_ms: int
    announcement: Announcement | None
    address: PeerAddress
    node_id: bytes
    record: Record

    @classmethod
    def of(cls, record: Record, announcement: Announcement | None) -> Entry:
        endpoints = announcement.endpoints if announcement else ()
        name = "".join(c if c.isprintable() else "?" for c in announcement.name) if announcement else ""
        address = PeerAddress(record.publisher, endpoints, name)
        node_id = peer_id(record.publisher)
        return cls(record.tag, record.sequence, record.expires_ms, announcement, address, node_id, record)

    @property
    def claims(self) -> tuple[Claim, ...]:
        return self.announcement.claims if self.announcement else ()

    def is_serving(self, wall_ms: float) -> bool:
        """Whether it can be called: online, somewhere, and not expired."""
        online = self.announcement is not None and self.announcement.state == "online"
        return online and bool(self.address.endpoints) and wall_ms < self.expires_ms


class LayerClaims:
    """One layer. Not thread-safe: the directory holds its lock around it, and keeps `entries`: of each node that claims
    cells of the layer its newest.
    """

    def __init__(self, prefix: str, grid: Grid) -> None:
        self.prefix = prefix
        self.grid = grid
        self.num_cells = grid.num_cells
        self.entries: dict[bytes, Entry] = {}

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

    def tags_below(self, indices: tuple[int, ...]) -> tuple[bytes, ...]:
        """Tags of the records that claim cells whose uids begin with these indices."""
        return tuple(
            entry.tag
            for entry in self.entries.values()
            if any(
                next_indices(claim.spans, self.grid, indices) for claim in entry.claims if claim.prefix == self.prefix
            )
        )

    def covered(self, indices: tuple[int, ...], records: Iterable[Record]) -> frozenset[int]:
        """Which indices after these somebody claims, as far as is known here or these records say."""
        claims = [claim for entry in self.entries.values() for claim in entry.claims]
        for record in records:
            with contextlib.suppress(WireError):
                claims += Announcement.from_bytes(record.value).claims
        spans = (claim.spans for claim in claims if claim.prefix == self.prefix)
        return frozenset(index for of_claim in spans for index in next_indices(of_claim, self.grid, indices))

    def _cells(self, entry: Entry) -> Iterator[tuple[int, int]]:
        return claimed_cells(entry.claims, self.prefix, self.num_cells)


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
