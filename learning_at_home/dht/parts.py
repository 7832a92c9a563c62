"""Messages that are longer than one datagram: taken apart, and put together again. Pure: `now` is passed in.

Each part names its place, how many there are, and a digest of the whole. A question that is sent again keeps its id,
so parts of both sendings complete each other where the digest is the same; where the answer changed meanwhile they are
of two messages, and never mix. Who put a part on its way is proven by the datagram that it comes in.

Whoever sends parts and never the last one costs memory: of requests at most MAX_MESSAGES are incomplete at once, 4 MB,
and of one source MAX_PER_SOURCE; then the oldest is dropped, which its sender sends again. Parts of honest messages
come within milliseconds of each other, so the oldest is hardly ever theirs.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from learning_at_home.dht.rate_limits import source_of
from learning_at_home.errors import WireError

MAX_PARTS = 7  # a record of 4,150 bytes with 3,000 bytes of names takes them all
DIGEST_BYTES = 8
MAX_VERSIONS = 2  # of one answer: it may change between two sendings of its question
MAX_MESSAGES = 512  # requests whose parts are not all there, of 7.8 kB at most
MAX_PER_SOURCE = 64
LIFE_S = 3.0  # a question is sent for the last time within a second of the first


class Part(NamedTuple):
    """Which part of which message. The digest of a whole message is not needed: zeros."""

    place: int
    total: int
    digest: bytes


WHOLE = Part(0, 1, bytes(DIGEST_BYTES))


def parts_of(message: bytes, room_bytes: int) -> Iterator[tuple[Part, bytes]]:
    """The message as it travels when a datagram has room for so much of it: all parts but the last are full."""
    if len(message) <= room_bytes:
        yield WHOLE, message
        return
    count = -(-len(message) // room_bytes)
    digest = _digest(message)
    for index in range(count):
        yield Part(index, count, digest), message[index * room_bytes : (index + 1) * room_bytes]


_Key = tuple[bytes, bytes, int, bytes]  # sender, message id, number of parts, digest


@dataclass(slots=True)
class _Incomplete:
    """One message; `source` and `since_s` are those of its first part."""

    source: str = ""
    since_s: float = 0.0
    parts: dict[int, bytes] = field(default_factory=dict)

    def add(self, part: Part, data: bytes) -> bytes | None:
        """The message when it is complete. Raises WireError when what came is not what its digest says."""
        self.parts.setdefault(part.place, data)
        if len(self.parts) < part.total:
            return None
        message = b"".join(self.parts[index] for index in range(part.total))
        if _digest(message) != part.digest:
            raise WireError("the parts of a message that are not of one message")
        return message


class AnswerParts:
    """Of the answer to one question."""

    def __init__(self) -> None:
        self._versions: OrderedDict[tuple[int, bytes], _Incomplete] = OrderedDict()

    def add(self, part: Part, data: bytes) -> bytes | None:
        """The whole answer when this was the last part of it. Raises WireError when it is none."""
        if part.total == 1:
            return data
        version = self._versions.setdefault((part.total, part.digest), _Incomplete())
        if len(self._versions) > MAX_VERSIONS:
            self._versions.popitem(last=False)
        return version.add(part, data)


class RequestParts:
    """Of the requests of many peers. `counters`: parts_dropped are the messages that were given up."""

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._messages: OrderedDict[_Key, _Incomplete] = OrderedDict()  # the oldest first
        self._of_source: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, source: str, request: tuple[bytes, bytes], part: Part, data: bytes, now: float) -> bytes | None:
        """The whole request when this was the last part of it. `source`: the address that it comes from; `request`: its
        sender and its id. Raises WireError when the parts are not what their digest says.
        """
        source = source_of(source)
        self._forget_old(now)
        key = (*request, part.total, part.digest)
        if key not in self._messages:
            self._make_room(source)
            self._messages[key] = _Incomplete(source, now)
            self._of_source[source] += 1
        try:
            message = self._messages[key].add(part, data)
        except WireError:
            self._remove(key)
            raise
        if message is not None:
            self._remove(key)
        return message

    def _forget_old(self, now: float) -> None:
        while self._messages:
            key, oldest = next(iter(self._messages.items()))
            if now < oldest.since_s + LIFE_S:
                return
            self._drop(key)

    def _make_room(self, source: str) -> None:
        if self._of_source[source] >= MAX_PER_SOURCE:
            self._drop(next(key for key, message in self._messages.items() if message.source == source))
        if len(self._messages) >= MAX_MESSAGES:
            self._drop(next(iter(self._messages)))

    def _drop(self, key: _Key) -> None:
        self._counters["parts_dropped"] += 1
        self._remove(key)

    def _remove(self, key: _Key) -> None:
        source = self._messages.pop(key).source
        self._of_source[source] -= 1
        if not self._of_source[source]:
            del self._of_source[source]


def _digest(message: bytes) -> bytes:
    return hashlib.blake2b(message, digest_size=DIGEST_BYTES).digest()
