"""Answers to look-ups, as long as they may be: see address_proofs.py. Pure.

First come the neighbours, then lives, then records. What of these had no room is told of (`more`, `has_more`), and the
next question brings it.
"""

from __future__ import annotations

from learning_at_home.dht.contacts import PACKED_BYTES
from learning_at_home.dht.messages import MAX_TOLD, FindSlots, FindValue, Nodes, SlotsFound, Values
from learning_at_home.dht.records import ITEM_BYTES
from learning_at_home.dht.slots import SlotStorage
from learning_at_home.dht.storage import RecordStorage

FRAMING_BYTES = 48  # of an answer, at most, without its records, lives and neighbours

Neighbours = tuple[bytes, ...]  # packed, the closest to the key first


def most_neighbours(room_bytes: int) -> int:
    """How many there is room for, whatever their addresses."""
    return min(MAX_TOLD, (room_bytes - FRAMING_BYTES) // (PACKED_BYTES[1] + ITEM_BYTES))


def nodes(neighbours: Neighbours, room_bytes: int) -> Nodes:
    """To find_node."""
    return Nodes(_fitting(neighbours, room_bytes))


def values(request: FindValue, storage: RecordStorage, neighbours: Neighbours, room_bytes: int, now_ms: int) -> Values:
    """To find_value: a page of the records after the publisher `after`."""
    neighbours = _fitting(neighbours, room_bytes)
    page = storage.page(request.key, request.after, room_bytes - _bytes_beside(neighbours), now_ms)
    return Values(page.records, page.more, neighbours)


def slots_found(
    request: FindSlots, storage: SlotStorage, neighbours: Neighbours, room_bytes: int, now_ms: int
) -> SlotsFound:
    """To find_slots."""
    neighbours = _fitting(neighbours, room_bytes)
    most_bytes = room_bytes - _bytes_beside(neighbours)
    page = storage.page(request.key, request.first, request.wanted, request.known, most_bytes, now_ms)
    return SlotsFound(page.lives, page.records, page.has_more, neighbours)


def _fitting(neighbours: Neighbours, room_bytes: int) -> Neighbours:
    """The closest ones, as many as there is room for."""
    while neighbours and _bytes_beside(neighbours) > room_bytes:
        neighbours = neighbours[:-1]
    return neighbours


def _bytes_beside(neighbours: Neighbours) -> int:
    """What an answer with these takes beside its records and lives."""
    return FRAMING_BYTES + ITEM_BYTES * len(neighbours) + sum(map(len, neighbours))
