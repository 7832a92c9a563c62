"""The DHT's datagrams as values: rpcudp's framing and the package's RPC names, our arguments and answers. Pure.

    request   0x00, 20 random bytes, msgpack [name, [arguments]]
    answer    0x01, the same 20 bytes, msgpack [...]

    ping(sender)    find_node(sender, target)    find_value(sender, key, after)    store(sender, key, record)
    store_slots(sender, record, names)                find_slots(sender, key, first, wanted, known)

`sender` is the sender's node id, or empty when it holds nothing for others and wants to be in nobody's table.
Answers may grow: a reader ignores elements that it does not know. Bytes from the network raise WireError and nothing
else.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from learning_at_home.dht.contacts import Contact
from learning_at_home.dht.records import KEY_BYTES, MAX_RECORD_BYTES, NOT_MSGPACK, TAG_BYTES
from learning_at_home.dht.slots import MAX_LIVES
from learning_at_home.errors import WireError
from learning_at_home.identity import PEER_ID_BYTES, PUBLIC_KEY_BYTES

REQUEST, ANSWER = b"\x00", b"\x01"
ID_BYTES = 20
HEADER_BYTES = 1 + ID_BYTES
MAX_DATAGRAM_BYTES = HEADER_BYTES + 8_192  # rpcudp's limit
MAX_PAGE_BYTES = 6_700  # of records; 20 neighbours with IPv6 addresses take 1,320 more, the framing 100
MAX_SLOT_PAGE_BYTES = MAX_PAGE_BYTES - MAX_LIVES
MAX_NEIGHBOURS = 20
MAX_RECORDS_PER_PAGE = 64  # a record takes at least 142 bytes
MAX_NAMES = 128  # keys that one request stores a record under; with MAX_NAMES_BYTES for all of them it fits a datagram
MAX_NAME_CHARS = 160
MAX_NAMES_BYTES = 3_000
MAX_WANTED = 256
MAX_KNOWN = 256  # tags

NodeId = Annotated[bytes, msgspec.Meta(min_length=PEER_ID_BYTES, max_length=PEER_ID_BYTES)]
Sender = Annotated[bytes, msgspec.Meta(max_length=PEER_ID_BYTES)]
Key = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
After = Annotated[bytes, msgspec.Meta(max_length=PUBLIC_KEY_BYTES)]
RecordBytes = Annotated[bytes, msgspec.Meta(max_length=MAX_RECORD_BYTES)]
Slot = Annotated[int, msgspec.Meta(ge=0, lt=1 << 22)]
WallMs = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]
Neighbour = tuple[NodeId, Annotated[str, msgspec.Meta(max_length=45)], Annotated[int, msgspec.Meta(ge=1, le=65_535)]]


class Ping(msgspec.Struct, frozen=True, array_like=True):
    sender: Sender


class FindNode(msgspec.Struct, frozen=True, array_like=True):
    sender: Sender
    target: Key


class FindValue(msgspec.Struct, frozen=True, array_like=True):
    sender: Sender
    key: Key
    after: After


class Store(msgspec.Struct, frozen=True, array_like=True):
    sender: Sender
    key: Key
    record: RecordBytes


class StoreSlots(msgspec.Struct, frozen=True, array_like=True):
    sender: Sender
    record: RecordBytes
    names: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=MAX_NAME_CHARS)], ...], msgspec.Meta(max_length=MAX_NAMES)
    ]


class FindSlots(msgspec.Struct, frozen=True, array_like=True):
    sender: Sender
    key: Key
    first: Slot  # the lives of MAX_LIVES slots from here on are told
    wanted: Annotated[tuple[Slot, ...], msgspec.Meta(max_length=MAX_WANTED)] | None  # whose records; None: all
    known: Annotated[bytes, msgspec.Meta(max_length=MAX_KNOWN * TAG_BYTES)]  # tags of records that need not be sent


Request = Ping | FindNode | FindValue | Store | StoreSlots | FindSlots


class Pong(msgspec.Struct, frozen=True, array_like=True):
    node_id: NodeId
    wall_ms: WallMs  # time hint


class Nodes(msgspec.Struct, frozen=True, array_like=True):
    node_id: NodeId
    neighbours: Annotated[tuple[Neighbour, ...], msgspec.Meta(max_length=MAX_NEIGHBOURS)]


class Values(msgspec.Struct, frozen=True, array_like=True):
    node_id: NodeId
    records: Annotated[tuple[RecordBytes, ...], msgspec.Meta(max_length=MAX_RECORDS_PER_PAGE)]
    more: After  # the publisher to continue after; empty: that was all
    neighbours: Annotated[tuple[Neighbour, ...], msgspec.Meta(max_length=MAX_NEIGHBOURS)]


class Stored(msgspec.Struct, frozen=True, array_like=True):
    node_id: NodeId
    refusal: Annotated[str, msgspec.Meta(max_length=40)]  # empty: the record is held
    wall_ms: WallMs


class SlotsStored(msgspec.Struct, frozen=True, array_like=True):
    node_id: NodeId
    refusals: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=40)], ...], msgspec.Meta(max_length=MAX_NAMES)]
    wall_ms: WallMs


class SlotsFound(msgspec.Struct, frozen=True, array_like=True):
    node_id: NodeId
    lives: Annotated[bytes, msgspec.Meta(max_length=MAX_LIVES)]  # seconds that each slot still lives; 0: empty
    records: Annotated[tuple[RecordBytes, ...], msgspec.Meta(max_length=MAX_RECORDS_PER_PAGE)]
    has_more: bool
    neighbours: Annotated[tuple[Neighbour, ...], msgspec.Meta(max_length=MAX_NEIGHBOURS)]


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
_call_decoder: msgspec.msgpack.Decoder[tuple[str, msgspec.Raw]] = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])


def encode_request(message_id: bytes, request: Request) -> bytes:
    return REQUEST + message_id + msgspec.msgpack.encode((_NAMES[type(request)], request))


def encode_answer(message_id: bytes, answer: Answer) -> bytes:
    return ANSWER + message_id + msgspec.msgpack.encode(answer)


def split_datagram(datagram: bytes) -> tuple[bytes, bytes, bytes]:
    """Kind (REQUEST or ANSWER), message id, payload. Raises WireError."""
    if not HEADER_BYTES < len(datagram) <= MAX_DATAGRAM_BYTES or datagram[:1] not in (REQUEST, ANSWER):
        raise WireError("not a datagram of the DHT")
    return datagram[:1], datagram[1:HEADER_BYTES], datagram[HEADER_BYTES:]


def decode_request(payload: bytes) -> Request:
    """Raises WireError: unknown name, or arguments of the wrong kind, number or size."""
    try:
        name, arguments = _call_decoder.decode(payload)
        decoder = _REQUESTS.get(name)
        if decoder is None:
            raise WireError("a DHT request of an unknown name")
        request = decoder.decode(arguments)
    except NOT_MSGPACK as error:
        raise WireError(f"not a DHT request: {error}") from error
    if len(request.sender) not in (0, PEER_ID_BYTES):
        raise WireError("a DHT request whose sender is no node id")
    return request


def decode_answer(payload: bytes, kind: type[AnswerT]) -> AnswerT:
    """Raises WireError when it is no answer of this kind."""
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except NOT_MSGPACK as error:
        raise WireError(f"not a DHT answer: {error}") from error


def contacts_of(neighbours: tuple[Neighbour, ...]) -> list[Contact]:
    return [Contact(*neighbour) for neighbour in neighbours]
