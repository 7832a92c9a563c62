"""Signed, expiring values: the only thing that our DHT holds.

A key has one sub-record per publisher, and slots: see slots.py. Whoever holds or reads a record checks it alone:
signature, expiry, size, sequence. Pure: bytes and values, `now_ms` passed in.
Policy: docs/decisions/0002-dht-on-kademlia.md.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

import msgspec

from learning_at_home.clock import CLOCK_SKEW_TOLERATED_S
from learning_at_home.errors import WireError
from learning_at_home.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Identity, verify

KEY_BYTES = 20  # Kademlia's 160 bits
# An announcement of 512 experts, strewn over their grid, takes 2 kB. A record is stored by one request, which travels
# in parts; its key, publisher, signature and framing take under 150 bytes.
MAX_VALUE_BYTES = 4_000
MAX_RECORD_BYTES = MAX_VALUE_BYTES + 150
ITEM_BYTES = 3  # of framing, at most, around a record or a neighbour in an answer
MAX_LIFE_MS = 25 * 3600 * 1000  # a day, and an hour to renew what is renewed daily
SKEW_MS = int(CLOCK_SKEW_TOLERATED_S * 1000)
TAG_BYTES = 8
SIGNING_PURPOSE = "dht-record"
VERIFIED_CACHE_SIZE = 8_192  # 32 bytes each; a verification costs 86 µs, a look into the cache 3
# What msgspec raises for bytes that are no msgpack of the kind asked for; ValueError is UnicodeDecodeError, for a text
# that is not UTF-8, which it lets through.
NOT_MSGPACK = (msgspec.DecodeError, ValueError, RecursionError)

_MOST = (1 << 63) - 1


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One publisher's value under one key. An empty value is a tombstone: the publisher withdrew what it had there.

    `sequence` is the publisher's wall clock in ms when it signed (or one more than its last, if that is later).
    """

    key: Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
    publisher: Annotated[bytes, msgspec.Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
    sequence: Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
    expires_ms: Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
    value: Annotated[bytes, msgspec.Meta(max_length=MAX_VALUE_BYTES)]
    signature: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]

    @property
    def is_tombstone(self) -> bool:
        return not self.value

    @property
    def tag(self) -> bytes:
        """What names this record, and no other, to a peer that is told what need not be sent."""
        return self.signature[:TAG_BYTES]

    @property
    def num_bytes(self) -> int:
        """What it counts for in a bound: a little more than its encoded size."""
        return len(self.value) + 150

    def to_bytes(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Record:
        """Raises WireError on anything that is not a well-formed record; says nothing of its signature or expiry."""
        if len(data) > MAX_RECORD_BYTES:
            raise WireError(f"a DHT record of {len(data):,} bytes; {MAX_RECORD_BYTES:,} are allowed")
        try:
            return _decoder.decode(data)
        except NOT_MSGPACK as error:
            raise WireError(f"not a DHT record: {error}") from error


_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


class Refusal(StrEnum):
    """Why a record is not taken. The text crosses the wire."""

    MALFORMED = "malformed"
    OVERSIZED = "oversized"
    EXPIRED = "expired"
    FROM_THE_FUTURE = "from-the-future"
    BAD_SIGNATURE = "bad-signature"
    OLDER = "older"
    KEY_FULL = "key-full"
    NO_SLOT = "no-slot"
    SLOT_FULL = "slot-full"
    PUBLISHER_QUOTA = "publisher-quota"
    STORAGE_FULL = "storage-full"


def key_of(name: str) -> bytes:
    """The key of a name such as "project/digits"."""
    return hashlib.sha256(name.encode()).digest()[:KEY_BYTES]


def sign_record(identity: Identity, key: bytes, value: bytes, *, sequence: int, expires_ms: int) -> Record:
    """A record of this identity's."""
    signature = identity.sign(SIGNING_PURPOSE, canonical_bytes(key, identity.public_key, sequence, expires_ms, value))
    return Record(key, identity.public_key, sequence, expires_ms, value, signature)


def canonical_bytes(key: bytes, publisher: bytes, sequence: int, expires_ms: int, value: bytes) -> bytes:
    """What a record's signature covers: all fields, each in msgpack's shortest form."""
    return msgspec.msgpack.encode((key, publisher, sequence, expires_ms, value))


class RecordVerifier:
    """Checks records; remembers the signatures it found good, since the same record arrives from many peers."""

    def __init__(self, cache_size: int = VERIFIED_CACHE_SIZE) -> None:
        self._cache_size = cache_size
        self._verified: OrderedDict[bytes, None] = OrderedDict()

    def refusal(self, record: Record, now_ms: int) -> Refusal | None:
        """The reason not to take this record, or None. The cheap checks come first."""
        if len(record.key) != KEY_BYTES:
            return Refusal.MALFORMED
        if len(record.value) > MAX_VALUE_BYTES:
            return Refusal.OVERSIZED
        if record.expires_ms <= now_ms - SKEW_MS:
            return Refusal.EXPIRED
        if record.expires_ms > now_ms + MAX_LIFE_MS + SKEW_MS or record.sequence > now_ms + SKEW_MS:
            return Refusal.FROM_THE_FUTURE
        return None if self._is_signed(record) else Refusal.BAD_SIGNATURE

    def _is_signed(self, record: Record) -> bool:
        message = canonical_bytes(record.key, record.publisher, record.sequence, record.expires_ms, record.value)
        fingerprint = hashlib.sha256(record.signature + message).digest()
        if fingerprint in self._verified:
            self._verified.move_to_end(fingerprint)
            return True
        if not verify(record.publisher, SIGNING_PURPOSE, message, record.signature):
            return False
        self._verified[fingerprint] = None
        if len(self._verified) > self._cache_size:
            self._verified.popitem(last=False)
        return True


def is_newer(record: Record, than: Record) -> bool:
    """Which of two records of one publisher counts. Of two with one sequence every reader picks the same."""
    return (record.sequence, record.expires_ms, record.signature) > (than.sequence, than.expires_ms, than.signature)


def newest_per_publisher(records: Iterable[Record]) -> dict[bytes, Record]:
    """Of each publisher its newest record, tombstones included. The caller has verified them."""
    newest: dict[bytes, Record] = {}
    for record in records:
        held = newest.get(record.publisher)
        if held is None or is_newer(record, held):
            newest[record.publisher] = record
    return newest
