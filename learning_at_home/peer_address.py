"""Where a peer answers, and whose key it must hold. What the directory knows and the transport needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """A peer to call: the connection is refused unless it holds the key."""

    public_key: bytes  # Ed25519
    endpoints: tuple[str, ...]  # "tcp://host:port", the best first
    name: str  # for people
