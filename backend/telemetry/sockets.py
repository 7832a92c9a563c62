"""Which websockets are open: how many per address, and which one speaks for a key. Pure.

Policy: over the limit a new socket is refused, those that are open stay. A second socket of a key replaces the first:
the first is most often a connection whose end we have not noticed yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from learning_at_home.errors import NodeOverloaded

MAX_SOCKETS = 10_000  # of all addresses; below the descriptors that a service is usually given


class Speaker:
    """One authenticated socket. It is told when another took its place."""

    def __init__(self) -> None:
        self.replaced = False


class OpenSockets:
    """All websockets of this process."""

    def __init__(self, max_sockets: int = MAX_SOCKETS) -> None:
        self._per_address: Counter[str] = Counter()
        self._max_sockets = max_sockets
        self._speakers: dict[tuple[str, str, bytes], Speaker] = {}

    @contextmanager
    def slot(self, address: str, limit: int) -> Iterator[None]:
        """Room for one more socket of this address. Raises NodeOverloaded."""
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


def is_same_origin(origin: str | None, host: str | None, public_url: str) -> bool:
    """Whether a browser's page may open a websocket here: only one that we served ourselves.

    Programs send no Origin; a browser always does, and would send its cookies with it from any page.
    """
    if origin is None:
        return True
    parts = urlsplit(origin)
    if parts.scheme not in ("http", "https"):
        return False
    return parts.netloc.lower() in ((host or "").lower(), urlsplit(public_url).netloc.lower())
