"""A coordinator's signed statement that a node does not answer: the end of an announcement that the node itself could
not sign. Pure.

It is a record like any other, so that its signature, expiry and sequence are checked as those of announcements are; a
tombstone takes it back. It travels by the mirror only and is never in the DHT.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from learning_at_home.dht.records import NOT_MSGPACK, Record, key_of, sign_record
from learning_at_home.directory.announcement import ANNOUNCEMENT_LIFE_S
from learning_at_home.errors import WireError
from learning_at_home.identity import PUBLIC_KEY_BYTES, Identity

SUSPICION_LIFE_S = ANNOUNCEMENT_LIFE_S  # whatever the node had signed before has run out by then


class CoordinatorSuspicion(msgspec.Struct, frozen=True, array_like=True):
    """Announcements that `node` issued later than `since_ms` are signs of life, and end the suspicion."""

    node: Annotated[bytes, msgspec.Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
    since_ms: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]  # by the coordinator's clock, UTC

    @classmethod
    def from_record(cls, record: Record) -> CoordinatorSuspicion:
        """What a record that is no tombstone says. Raises WireError on anything malformed."""
        try:
            return msgspec.msgpack.decode(record.value, type=cls)
        except NOT_MSGPACK as error:
            raise WireError(f"not a suspicion: {error}") from error


def suspicion_key(project: str, node: bytes) -> bytes:
    return key_of(f"suspicion/{project}/{node.hex()}")


def sign_suspicion(coordinator: Identity, project: str, node: bytes, since_ms: int, *, sequence: int) -> Record:
    """That the node did not answer at `since_ms`."""
    value = msgspec.msgpack.encode(CoordinatorSuspicion(node, since_ms))
    expires_ms = since_ms + int(SUSPICION_LIFE_S * 1000)
    return sign_record(coordinator, suspicion_key(project, node), value, sequence=sequence, expires_ms=expires_ms)


def sign_absolution(coordinator: Identity, suspicion: Record, now_ms: int) -> Record:
    """The end of a suspicion; it lives for as long as that would have."""
    sequence = max(now_ms, suspicion.sequence + 1)
    expires_ms = max(suspicion.expires_ms, now_ms + 1_000)
    return sign_record(coordinator, suspicion.key, b"", sequence=sequence, expires_ms=expires_ms)
