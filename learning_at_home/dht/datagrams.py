"""The DHT's datagrams: who sends, what for, and the proof that it is this peer. Pure.

     1  kind         0x10 request, 0x12 request of one that holds nothing and wants to be in no table, 0x11 answer
    20  message id   random; an answer repeats its request's
    32  sender       the Ed25519 public key of who sends; its id is the start of the key's SHA-256
     8  token        an answer's is for who asked, who sends it back with its next requests: see address_proofs.py
     1  part         which one this is of
     1  parts        that the message has; all but the last are full
     8  digest       of the message that this is a part of, zeros for a whole one: see parts.py
     ?  message      or this part of it; see messages.py
    16  MAC          keyed BLAKE2b over all that stands before it

No datagram is longer than 1,200 bytes, so that none is taken apart on its way. The MAC's key is the pair's: see
Identity.pair_key. Who can make it holds the private key of `sender`, or is the receiver; and since kind and sender are
under it, nothing can be sent back as something else. A request to an address whose key is not known yet has sixteen
zeros there: it proves nothing, and only a ping may come so. Bytes from the network raise WireError and nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import NamedTuple

from learning_at_home.dht.parts import DIGEST_BYTES, MAX_PARTS, WHOLE, Part, parts_of
from learning_at_home.errors import WireError
from learning_at_home.identity import PUBLIC_KEY_BYTES

REQUEST, ANSWER = 0x10, 0x11
CLIENT_ONLY = 0x02
ID_BYTES = 20
TOKEN_BYTES = 8
NO_TOKEN = bytes(TOKEN_BYTES)
MAC_BYTES = 16
NO_MAC = bytes(MAC_BYTES)
MAX_DATAGRAM_BYTES = 1_200  # IPv6 carries 1,280 bytes everywhere, of which its header and UDP's take 48

_KINDS = (REQUEST, REQUEST | CLIENT_ONLY, ANSWER)
_header = struct.Struct(f"!B{ID_BYTES}s{PUBLIC_KEY_BYTES}s{TOKEN_BYTES}sBB{DIGEST_BYTES}s")
OVERHEAD_BYTES = _header.size + MAC_BYTES
ROOM_BYTES = MAX_DATAGRAM_BYTES - OVERHEAD_BYTES
MAX_MESSAGE_BYTES = MAX_PARTS * ROOM_BYTES


class Datagram(NamedTuple):
    """What one says, before anything is proven. `message`: where `part` is WHOLE, else this part of it."""

    kind: int
    message_id: bytes
    sender: bytes
    message: bytes
    token: bytes = NO_TOKEN
    part: Part = WHOLE

    @property
    def is_answer(self) -> bool:
        return self.kind == ANSWER


def sealed(datagram: Datagram, pair_key: bytes | None) -> bytes:
    """Its bytes; without a key it proves nothing."""
    kind, message_id, sender, message, token, part = datagram
    data = _header.pack(kind, message_id, sender, token, *part) + message
    return data + (NO_MAC if pair_key is None else _mac(data, pair_key))


def sealed_parts(datagram: Datagram, pair_key: bytes | None) -> list[bytes]:
    """The bytes of the datagrams in which this one's message, of up to MAX_MESSAGE_BYTES, travels."""
    if len(datagram.message) <= ROOM_BYTES:
        return [sealed(datagram, pair_key)]
    return [
        sealed(datagram._replace(message=data, part=part), pair_key)
        for part, data in parts_of(datagram.message, ROOM_BYTES)
    ]


def read(data: bytes) -> Datagram:
    """Raises WireError when it is no datagram of ours."""
    if not OVERHEAD_BYTES < len(data) <= MAX_DATAGRAM_BYTES or data[0] not in _KINDS:
        raise WireError("not a datagram of the DHT")
    kind, message_id, sender, token, place, total, digest = _header.unpack_from(data)
    part = Part(place, total, digest)
    is_full = len(data) == MAX_DATAGRAM_BYTES
    if not place < total <= MAX_PARTS or (total == 1 and part != WHOLE) or (place < total - 1 and not is_full):
        raise WireError("not a part of a message of the DHT")
    return Datagram(kind, message_id, sender, data[_header.size : -MAC_BYTES], token, part)


def claims_proof(data: bytes) -> bool:
    """Whether it has a MAC at all."""
    return data[-MAC_BYTES:] != NO_MAC


def is_genuine(data: bytes, pair_key: bytes) -> bool:
    """Whether the MAC is of this pair: the sender is who it says."""
    return hmac.compare_digest(_mac(data[:-MAC_BYTES], pair_key), data[-MAC_BYTES:])


def _mac(data: bytes, pair_key: bytes) -> bytes:
    return hashlib.blake2b(data, key=pair_key, digest_size=MAC_BYTES).digest()
