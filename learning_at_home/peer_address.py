"""Where a peer answers, and whose key it must hold. What the directory knows and the transport needs."""

from __future__ import annotations

from dataclasses import dataclass

PLAIN_SCHEME = "tcp+plain://"  # an endpoint without encryption or proof of keys: for trusted machines in one rack


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """A peer to call: the connection is refused unless it holds the key."""

    public_key: bytes  # Ed25519
    endpoints: tuple[str, ...]  # "tcp://host:port", the best first; or PLAIN_SCHEME
    name: str  # for people
