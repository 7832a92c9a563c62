"""Peers of a simulated DHT that lie, to measure what lies do to honest look-ups: our own code but for their answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from enum import Enum
from typing import assert_never

from learning_at_home.dht.contacts import Contact
from learning_at_home.dht.messages import (
    MAX_NEIGHBOURS,
    MAX_TOLD,
    READ_NEIGHBOURS,
    Answer,
    FindNode,
    FindSlots,
    FindValue,
    Nodes,
    Ping,
    Request,
    SlotsFound,
    Store,
    Stored,
    StoreSlots,
    Values,
    neighbours_of,
)
from learning_at_home.dht.node import DhtNode
from learning_at_home.dht.records import sign_record


class Lie(Enum):
    """What a liar answers to look-ups. All answer pings, and say that they hold what they are given."""

    NOTHING = "nothing"  # it knows nobody and holds nothing
    FALSE_VALUES = "false values"  # forged records, and one of its own
    FALSE_NEIGHBOURS = "false neighbours"  # other liars, and peers that do not exist, as near as it can find any


def make_liar(liar: DhtNode, lie: Lie, others: Sequence[DhtNode], chance: random.Random) -> None:
    """From now on it lies; `others`: the liars that it recommends."""
    protocol = liar._protocol
    honest = protocol._answer
    contacts = [Contact(other.identity.public_key, *other._bound) for other in others]

    def neighbours(target: bytes) -> tuple[bytes, ...]:
        if lie is not Lie.FALSE_NEIGHBOURS:
            return ()
        invented = [Contact(chance.randbytes(32), "20.255.255.254", 1 + chance.randrange(65_000)) for _ in range(50)]
        return neighbours_of(sorted(contacts + invented, key=lambda each: each.distance(target))[:MAX_NEIGHBOURS])

    def values(key: bytes) -> tuple[bytes, ...]:
        if lie is not Lie.FALSE_VALUES:
            return ()
        now_ms = int(liar.clock.wall_s() * 1000)
        own = sign_record(liar.identity, key, b"mine", sequence=now_ms, expires_ms=now_ms + 60_000).to_bytes()
        forged = bytearray(own)
        forged[len(forged) // 2] ^= 1
        return own, bytes(forged)

    def answer(asker: Contact, request: Request, room_bytes: int) -> Answer:
        match request:
            case Ping():
                return honest(asker, request, room_bytes)
            case FindNode():
                told = [neighbour for target in request.each() for neighbour in neighbours(target)]
                return Nodes(tuple(dict.fromkeys(told))[:MAX_TOLD])
            case FindValue():
                return Values(values(request.key), b"", neighbours(request.key)[:READ_NEIGHBOURS])
            case FindSlots():
                return SlotsFound(b"", (), False, neighbours(request.key)[:READ_NEIGHBOURS])
            case Store():
                return Stored("", int(liar.clock.wall_s() * 1000))
            case StoreSlots():
                return honest(asker, request, room_bytes)
            case _:
                assert_never(request)

    protocol._answer = answer  # type: ignore[method-assign]
