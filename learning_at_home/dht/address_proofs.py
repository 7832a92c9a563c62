"""Who hears at its address, and how much may be sent to one that has not shown it. Pure: `now` is passed in.

The source of a datagram is easily forged, and then the answer goes to somebody who asked nothing. So each answer
carries a token, made of the asker's key and address and of a secret of the answerer's; who sends it back has received
it there. Until then everything that a request brings to its source (the answer, and the pings that see whether a
stranger lives) is at most UNPROVEN_FACTOR times as long as the request, and one datagram: hence who has no token yet
makes its request longer. The answerer remembers nothing of anybody, and no round trip is needed for a proof alone.
Source: QUIC, RFC 9000, section 8.1.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections import OrderedDict

from learning_at_home.dht.contacts import Address
from learning_at_home.dht.datagrams import (
    MAX_DATAGRAM_BYTES,
    MAX_MESSAGE_BYTES,
    NO_TOKEN,
    OVERHEAD_BYTES,
    ROOM_BYTES,
    TOKEN_BYTES,
)
from learning_at_home.dht.messages import PING_BYTES

SECRET_LIFE_S = 300.0  # a token is good for as long, and at most twice as long
TOKEN_LIFE_S = 240.0  # after which its holder no longer trusts that it is good
MAX_TOKENS = 8_192  # 200 bytes each
UNPROVEN_FACTOR = 4
PINGS_BACK = 3  # questions.MAX_SENT
PING_BACK_BYTES = PINGS_BACK * (OVERHEAD_BYTES + PING_BYTES)
FIRST_REQUEST_BYTES = -(-(MAX_DATAGRAM_BYTES + PING_BACK_BYTES) // UNPROVEN_FACTOR)  # then an answer may be whole


def room_for_answer(request_bytes: int, is_proven: bool) -> int:
    """How long the message of an answer may be."""
    if is_proven:
        return MAX_MESSAGE_BYTES
    return min(ROOM_BYTES, UNPROVEN_FACTOR * request_bytes - PING_BACK_BYTES - OVERHEAD_BYTES)


class TokenIssuer:
    """The tokens that this peer gives to others."""

    def __init__(self) -> None:
        self._secrets: list[bytes] = []  # this one and the one before it
        self._until_s = float("-inf")

    def token(self, public_key: bytes, address: Address, now: float) -> bytes:
        """For who is there, as it says."""
        return _token(self._living_secrets(now)[0], public_key, address)

    def proves(self, token: bytes, public_key: bytes, address: Address, now: float) -> bool:
        """Whether it was sent to this peer at this address lately."""
        if token == NO_TOKEN:
            return False
        tokens = [_token(secret, public_key, address) for secret in self._living_secrets(now)]
        return any(hmac.compare_digest(token, each) for each in tokens)

    def _living_secrets(self, now: float) -> list[bytes]:
        if now >= self._until_s:
            is_long_ago = now >= self._until_s + SECRET_LIFE_S
            self._secrets = [os.urandom(32), *([] if is_long_ago else self._secrets[:1])]
            self._until_s = now + SECRET_LIFE_S
        return self._secrets


class HeldTokens:
    """The tokens that others gave this peer."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[Address, bytes], tuple[bytes, float]] = OrderedDict()

    def note(self, address: Address, public_key: bytes, token: bytes, now: float) -> None:
        """It came in an answer from there."""
        self._held[address, public_key] = (token, now)
        self._held.move_to_end((address, public_key))
        if len(self._held) > MAX_TOKENS:
            self._held.popitem(last=False)

    def forget(self, address: Address, public_key: bytes | None) -> None:
        """Whoever is there was silent: after a restart it does not know its tokens any more."""
        if public_key is not None:
            self._held.pop((address, public_key), None)

    def of(self, address: Address, public_key: bytes | None, now: float) -> bytes | None:
        """What shows this peer that we hear; None when there is none that is sure to be good."""
        if public_key is None:
            return None
        token, since_s = self._held.get((address, public_key), (None, now))
        return token if now < since_s + TOKEN_LIFE_S else None


def _token(secret: bytes, public_key: bytes, address: Address) -> bytes:
    source = f"{address[0]} {address[1]}".encode()
    return hashlib.blake2b(public_key + source, key=secret, digest_size=TOKEN_BYTES).digest()
