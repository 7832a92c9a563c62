"""Which websockets are open: how many per address and what these share, and which one speaks for a key. Pure.

Policy: over the limit a new socket is refused, those that are open stay. A second socket of a key replaces the first:
the first is most often a connection whose end we have not noticed yet.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from backend.live.token_bucket import TokenBucket
from learning_at_home.errors import NodeOverloaded

MAX_SOCKETS = 10_000  # of all addresses; fewer where descriptors are (descriptors.max_websockets)


# What all sockets of one address share. 8,192 experts, the most a node may announce, take about 400 KB every 5 s.
BYTES_PER_S, BYTES_BURST = 256 * 1024.0, 1024 * 1024.0
EXPERTS_PER_S, EXPERTS_BURST = 3_000.0, 16_384.0  # figures that are counted: 8,192 every 5 s are 1,640
NEW_KEYS_PER_S, NEW_KEYS_BURST = 1.0, 128.0  # a class of students behind one address starts at once
MAX_ADDRESSES = 10_000  # whose allowances are remembered


@dataclass(slots=True)
class Allowance:
    """What one address may make us do."""

    num_bytes: TokenBucket = field(default_factory=lambda: TokenBucket(BYTES_PER_S, BYTES_BURST))
    experts: TokenBucket = field(default_factory=lambda: TokenBucket(EXPERTS_PER_S, EXPERTS_BURST))
    new_keys: TokenBucket = field(default_factory=lambda: TokenBucket(NEW_KEYS_PER_S, NEW_KEYS_BURST))


class Speaker:
    """One authenticated socket. It is told when another took its place."""

    def __init__(self) -> None:
        self.replaced = False


class OpenSockets:
    """All websockets of this process."""

    def __init__(self, max_sockets: int = MAX_SOCKETS) -> None:
        self._per_address: Counter[str] = Counter()
        self._max_sockets = max_sockets
        self._allowances: dict[str, Allowance] = {}
        self._speakers: dict[tuple[str, str, bytes], Speaker] = {}

    @contextmanager
    def slot(self, address: str, limit: int) -> Iterator[None]:
        """Room for one more socket of this address. Raises NodeOverloaded."""
        address = one_of_many(address)
        if self._per_address[address] >= limit or self._per_address.total() >= self._max_sockets:
            raise NodeOverloaded(f"too many websockets are open from {address}; at most {limit} are taken")
        self._per_address[address] += 1
        try:
            yield
        finally:
            self._per_address[address] -= 1
            if not self._per_address[address]:
                del self._per_address[address]

    def __len__(self) -> int:
        return self._per_address.total()

    def allowance(self, address: str) -> Allowance:
        """What this address has left; it outlives the sockets, or a new one would be a new beginning."""
        address = one_of_many(address)
        allowance = self._allowances.pop(address, None) or Allowance()
        self._allowances[address] = allowance  # the last used is the last to be forgotten
        if len(self._allowances) > MAX_ADDRESSES:
            del self._allowances[next(iter(self._allowances))]
        return allowance

    @contextmanager
    def speaker(self, project_id: str, role: str, public_key: bytes) -> Iterator[Speaker]:
        """The place of the one who speaks for a key; whoever had it is told that it is replaced."""
        key = (project_id, role, public_key)
        if (before := self._speakers.get(key)) is not None:
            before.replaced = True
        speaker = self._speakers[key] = Speaker()
        try:
            yield speaker
        finally:
            if self._speakers.get(key) is speaker:
                del self._speakers[key]


def one_of_many(address: str) -> str:
    """What stands for an address: itself, or its network where one customer is given 2^64 of them."""
    try:
        number = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(number, ipaddress.IPv4Address):
        return address
    return str(number.ipv4_mapped or ipaddress.ip_network((int(number) >> 64 << 64, 64)))


def is_same_origin(origin: str | None, host: str | None, public_url: str) -> bool:
    """Whether a browser's page may open a websocket here: only one that we served ourselves.

    Programs send no Origin; a browser always does, and would send its cookies with it from any page.
    """
    if origin is None:
        return True
    try:
        parts = urlsplit(origin)
    except ValueError:  # such as http://[
        return False
    if parts.scheme not in ("http", "https"):
        return False
    return parts.netloc.lower() in ((host or "").lower(), urlsplit(public_url).netloc.lower())
