"""`lah dht get` and `lah dht peers`: what the DHT holds under a key or of an expert, and whom a visitor meets. Async.

How announcements lie in the DHT is the directory's knowledge: an expert is looked up through it.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from learning_at_home.clock import Clock
from learning_at_home.dht.node import DhtNode
from learning_at_home.dht.records import KEY_BYTES
from learning_at_home.dht.slot_exchange import FoundSlots, SlotAsk
from learning_at_home.directory.directory import Directory
from learning_at_home.errors import InvalidUid
from learning_at_home.expert_uid import ExpertUid, Grid, check_prefix
from learning_at_home.identity import peer_id
from learning_at_home.peer_address import PeerAddress
from learning_at_home.project import ProjectRecord
from learning_at_home.text import printable

_KEY = re.compile(
    rf"[0-9a-fA-F]{{{2 * KEY_BYTES}}}"
)  # longer than a prefix may be, so that neither is taken for the other
_INDEX = re.compile(r"0|[1-9][0-9]{0,6}")


@dataclass(frozen=True, slots=True)
class HeldRecord:
    """One publisher's record under a key."""

    publisher: str  # public key, hex
    publisher_id: str  # hex
    sequence: int
    age_s: float  # since the publisher signed it
    expires_in_s: float
    size_bytes: int
    withdrawn: bool


@dataclass(frozen=True, slots=True)
class HeldKey:
    """What a lookup of a key brought."""

    key: str  # hex
    records: tuple[HeldRecord, ...]
    num_answered: int  # peers
    seconds: float


@dataclass(frozen=True, slots=True)
class ServingNode:
    """A node that announces the cells asked for, or some of them."""

    name: str
    node_id: str  # hex
    public_key: str  # hex
    state: str
    endpoints: tuple[str, ...]
    cells: tuple[str, ...]  # uids of those asked for that it announces, in order
    holds: int  # of these: that callers are sent to it for
    sequence: int
    age_s: float
    expires_in_s: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FoundExperts:
    """What a lookup of a uid, or of the start of one, brought."""

    uid: str
    project: str
    num_cells: int  # asked for
    num_served: int
    nodes: tuple[ServingNode, ...]
    num_answered: int
    seconds: float


def parse_key(text: str) -> bytes | None:
    """The key that a hexadecimal text is; None for what may be a uid."""
    return bytes.fromhex(text) if _KEY.fullmatch(text) else None


async def find_key(dht: DhtNode, key: bytes, clock: Clock) -> HeldKey:
    """Every publisher's record under a key, also those in its slots."""
    started_s = time.monotonic()
    found, (in_slots,) = await asyncio.gather(dht.find(key), dht.find_slots([SlotAsk(key)]))
    seconds, now_s = time.monotonic() - started_s, clock.wall_s()
    records = tuple(
        HeldRecord(
            publisher=record.publisher.hex(),
            publisher_id=peer_id(record.publisher).hex(),
            sequence=record.sequence,
            age_s=now_s - record.sequence / 1000,
            expires_in_s=record.expires_ms / 1000 - now_s,
            size_bytes=len(record.to_bytes()),
            withdrawn=record.is_tombstone,
        )
        for record in (*found.records, *found.tombstones, *in_slots.records, *in_slots.tombstones)
    )
    return HeldKey(key.hex(), records, max(found.num_answered, in_slots.num_answered), seconds)


async def find_experts(dht: DhtNode, project: ProjectRecord, text: str, clock: Clock) -> FoundExperts:
    """Who announces an expert, or those whose uids start so. Raises InvalidUid or UnknownLayer."""
    prefix, indices = parse_start(text)
    layer = project.layer(prefix)
    cells = cells_of(layer.cells, prefix, indices)
    directory, counted = Directory(project, clock), _Counted(dht)
    started_s = time.monotonic()
    await directory.refresh(counted, [prefix])
    seconds, now_s = time.monotonic() - started_s, clock.wall_s()
    holders = directory.layer(prefix).holders
    nodes = []
    for each in directory.all_announcements():
        announced = {cell for claim in each.announcement.claims if claim.prefix == prefix for cell in claim.cells()}
        if claimed := [cell for cell in cells if cell in announced]:
            nodes.append(
                ServingNode(
                    name=printable(each.announcement.name),
                    node_id=peer_id(each.public_key).hex(),
                    public_key=each.public_key.hex(),
                    state=each.announcement.state,
                    endpoints=each.announcement.endpoints,
                    cells=tuple(str(layer.cells.uid(prefix, cell)) for cell in claimed),
                    holds=sum(_is_held_by(holders[cell], each.public_key) for cell in claimed),
                    sequence=each.sequence,
                    age_s=now_s - each.announcement.issued_ms / 1000,
                    expires_in_s=each.expires_ms / 1000 - now_s,
                    size_bytes=len(each.announcement.to_bytes()),
                )
            )
    num_served = sum(holders[cell] is not None for cell in cells)
    return FoundExperts(text, project.id, len(cells), num_served, tuple(nodes), counted.num_answered, seconds)


def parse_start(text: str) -> tuple[str, tuple[int, ...]]:
    """The layer's prefix and the indices given: all of a uid's, some, or none. Raises InvalidUid."""
    prefix, *parts = text[:256].split(".")
    if not all(_INDEX.fullmatch(part) for part in parts):
        raise InvalidUid(
            f"{text[:64]!r} is neither a key of {2 * KEY_BYTES} hexadecimal digits nor a uid or the start of one, such"
            " as 'ffn0.3.17' or 'ffn0'"
        )
    return check_prefix(prefix), tuple(map(int, parts))


def cells_of(grid: Grid, prefix: str, indices: tuple[int, ...]) -> range:
    """The cells, as flat indices, whose uids start with these indices. Raises InvalidUid when there are none."""
    free = grid.shape[len(indices) :]
    if len(indices) > len(grid.shape):
        shape = "x".join(map(str, grid.shape))
        raise InvalidUid(f"layer {prefix} has a grid of {shape}: a uid there has {len(grid.shape)} indices")
    first = grid.cell(ExpertUid(prefix, (*indices, *[0] * len(free))))
    return range(first, first + math.prod(free))


class _Counted:
    """The DHT as the directory asks it; remembers how many peers answered."""

    def __init__(self, dht: DhtNode) -> None:
        self.num_answered = 0
        self._dht = dht

    async def find_slots(self, asks: Sequence[SlotAsk]) -> list[FoundSlots]:
        found = await self._dht.find_slots(asks)
        self.num_answered = max(self.num_answered, *(each.num_answered for each in found))
        return found


def _is_held_by(holder: PeerAddress | None, public_key: bytes) -> bool:
    return holder is not None and holder.public_key == public_key
