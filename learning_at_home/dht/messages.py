"""What the DHT's peers say to each other: the package's RPC names, our arguments and answers, in msgpack. Pure.

    request   [name, [arguments]]       ping()    find_node(targets)    find_value(key, after)    store(key, record)
    answer    [...]                     Pong      Nodes                 Values                    Stored

    request   store_slots(record, names)    find_slots(key, first, wanted, known)
    answer    SlotsStored                   SlotsFound

After its arguments a request may have zeros that make it longer: see address_proofs.py. How messages travel, and who
proves what to whom: see datagrams.py. A neighbour is packed: its public key (32 bytes), its address (4 or 16) and its
port (2). Answers may grow: a reader ignores elements that it does not know. Bytes from the network raise WireError and
nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, TypeVar

import msgspec

from learning_at_home.dht.contacts import PACKED_BYTES, Contact, packed_contact, unpacked_contact
from learning_at_home.dht.records import KEY_BYTES, MAX_RECORD_BYTES, NOT_MSGPACK, TAG_BYTES
from learning_at_home.dht.slots import MAX_LIVES
from learning_at_home.errors import WireError
from learning_at_home.identity import PUBLIC_KEY_BYTES

MAX_NEIGHBOURS = 20  # with IPv6 addresses they take 1,044 bytes: a datagram has room for them
MAX_TARGETS = 50  # of one question; they fit a datagram
MAX_TOLD = 128  # contacts, nearest to any of them; with IPv6 addresses they take 6,800 bytes of the 7,791
READ_NEIGHBOURS = 8  # as many as a read follows: exchange.READ_K and lookup.SPARE
MAX_RECORDS_PER_PAGE = 64  # a record takes at least 142 bytes, the longest message 7,791
MAX_NAMES = 64  # keys that one request stores a record under: the longest refusals of as many fit a datagram
MAX_NAME_CHARS = 160
MAX_NAMES_BYTES = 3_000  # beside the longest record, in the longest message
MAX_WANTED = 256
MAX_KNOWN = 256  # tags
MAX_FIRST_KNOWN = 32  # that fit a datagram with MAX_WANTED lines of up to 65,536
PING_BYTES = 10  # as a pong has

Key = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
After = Annotated[bytes, msgspec.Meta(max_length=PUBLIC_KEY_BYTES)]
RecordBytes = Annotated[bytes, msgspec.Meta(max_length=MAX_RECORD_BYTES)]
Slot = Annotated[int, msgspec.Meta(ge=0, lt=1 << 22)]
WallMs = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]
Neighbour = Annotated[bytes, msgspec.Meta(min_length=PACKED_BYTES[0], max_length=PACKED_BYTES[1])]
Neighbours = Annotated[tuple[Neighbour, ...], msgspec.Meta(max_length=MAX_NEIGHBOURS)]


class Ping(msgspec.Struct, frozen=True, array_like=True):
    pass


class FindNode(msgspec.Struct, frozen=True, array_like=True):
    targets: Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=MAX_TARGETS * KEY_BYTES)]  # one by one

    def each(self) -> list[bytes]:
        """The targets. Raises WireError when the last is cut off."""
        if len(self.targets) % KEY_BYTES:
            raise WireError("a DHT request with a target that is cut off")
        return [self.targets[start : start + KEY_BYTES] for start in range(0, len(self.targets), KEY_BYTES)]


class FindValue(msgspec.Struct, frozen=True, array_like=True):
    key: Key
    after: After


class Store(msgspec.Struct, frozen=True, array_like=True):
    key: Key
    record: RecordBytes


class StoreSlots(msgspec.Struct, frozen=True, array_like=True):
    record: RecordBytes
    names: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=MAX_NAME_CHARS)], ...], msgspec.Meta(max_length=MAX_NAMES)
    ]


class FindSlots(msgspec.Struct, frozen=True, array_like=True):
    key: Key
    first: Slot  # the lives of MAX_LIVES slots from here on are told
    wanted: Annotated[tuple[Slot, ...], msgspec.Meta(max_length=MAX_WANTED)] | None  # whose records; None: all
    known: Annotated[bytes, msgspec.Meta(max_length=MAX_KNOWN * TAG_BYTES)]  # tags of records that need not be sent


Request = Ping | FindNode | FindValue | Store | StoreSlots | FindSlots


class Pong(msgspec.Struct, frozen=True, array_like=True):
    wall_ms: WallMs  # time hint


class Nodes(msgspec.Struct, frozen=True, array_like=True):
    neighbours: Annotated[tuple[Neighbour, ...], msgspec.Meta(max_length=MAX_TOLD)]


class Values(msgspec.Struct, frozen=True, array_like=True):
    records: Annotated[tuple[RecordBytes, ...], msgspec.Meta(max_length=MAX_RECORDS_PER_PAGE)]
    more: After  # the publisher to continue after; empty: that was all
    neighbours: Neighbours


class Stored(msgspec.Struct, frozen=True, array_like=True):
    refusal: Annotated[str, msgspec.Meta(max_length=40)]  # empty: the record is held
    wall_ms: WallMs


class SlotsStored(msgspec.Struct, frozen=True, array_like=True):
    refusals: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=40)], ...], msgspec.Meta(max_length=MAX_NAMES)]
    wall_ms: WallMs


class SlotsFound(msgspec.Struct, frozen=True, array_like=True):
    lives: Annotated[bytes, msgspec.Meta(max_length=MAX_LIVES)]  # seconds that each slot still lives; 0: empty
    records: Annotated[tuple[RecordBytes, ...], msgspec.Meta(max_length=MAX_RECORDS_PER_PAGE)]
    has_more: bool
    neighbours: Neighbours


Answer = Pong | Nodes | Values | Stored | SlotsStored | SlotsFound
AnswerT = TypeVar("AnswerT", bound=Answer)

_REQUESTS: dict[str, msgspec.msgpack.Decoder[Request]] = {
    "ping": msgspec.msgpack.Decoder(Ping),
    "find_node": msgspec.msgpack.Decoder(FindNode),
    "find_value": msgspec.msgpack.Decoder(FindValue),
    "store": msgspec.msgpack.Decoder(Store),
    "store_slots": msgspec.msgpack.Decoder(StoreSlots),
    "find_slots": msgspec.msgpack.Decoder(FindSlots),
}
_NAMES: dict[type[Request], str] = {
    Ping: "ping",
    FindNode: "find_node",
    FindValue: "find_value",
    Store: "store",
    StoreSlots: "store_slots",
    FindSlots: "find_slots",
}


class _Call(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    name: str
    arguments: msgspec.Raw
    padding: bytes = b""


_call_decoder = msgspec.msgpack.Decoder(_Call)


def encode_request(request: Request, least_bytes: int = 0) -> bytes:
    """`least_bytes`: one that is shorter is made longer, by a byte more where that cannot be met exactly."""
    call = (_NAMES[type(request)], request)
    message = msgspec.msgpack.encode(call)
    missing = least_bytes - len(message)
    return message if missing <= 0 else msgspec.msgpack.encode((*call, bytes(max(0, missing - 2))))


def encode_answer(answer: Answer) -> bytes:
    return msgspec.msgpack.encode(answer)


def decode_request(message: bytes) -> Request:
    """Raises WireError: unknown name, or arguments of the wrong kind, number or size."""
    try:
        call = _call_decoder.decode(message)
        decoder = _REQUESTS.get(call.name)
        if decoder is None:
            raise WireError("a DHT request of an unknown name")
        return decoder.decode(call.arguments)
    except NOT_MSGPACK as error:
        raise WireError(f"not a DHT request: {error}") from error


def decode_answer(message: bytes, kind: type[AnswerT]) -> AnswerT:
    """Raises WireError when it is no answer of this kind."""
    try:
        return msgspec.msgpack.decode(message, type=kind)
    except NOT_MSGPACK as error:
        raise WireError(f"not a DHT answer: {error}") from error


def neighbours_of(contacts: Iterable[Contact]) -> tuple[bytes, ...]:
    return tuple(map(packed_contact, contacts))


def contacts_of(neighbours: tuple[bytes, ...]) -> list[Contact]:
    """What is none is left out."""
    return [unpacked_contact(neighbour) for neighbour in neighbours if len(neighbour) in PACKED_BYTES]
