"""How much is queued for each caller that libzmq has not sent yet. Used by the server's thread only.

libzmq bounds a peer's queue by messages, not by bytes: 256 answers of 64 MiB to a caller that does not read would be
16 GiB. Large frames are shared with libzmq, which tells when it is done with each; small ones are copied, and few.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque

import zmq

MAX_UNSENT_BYTES = 192 * 1024 * 1024  # per caller: three of the largest answers


class UnsentBytes:
    """Large frames on their way, by caller (routing id)."""

    def __init__(self, limit_bytes: int = MAX_UNSENT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._frames: OrderedDict[bytes, deque[tuple[zmq.MessageTracker, int]]] = OrderedDict()
        self._bytes: dict[bytes, int] = {}

    def has_room(self, caller: bytes) -> bool:
        """Whether more may be queued for this caller."""
        if caller not in self._bytes:
            return True
        self._forget_sent(caller)
        return self._bytes.get(caller, 0) < self.limit_bytes

    def add(self, caller: bytes, tracker: zmq.MessageTracker, size_bytes: int) -> None:
        """A large frame was handed to libzmq. The longest unseen callers are looked through on the way."""
        self._frames.setdefault(caller, deque()).append((tracker, size_bytes))
        self._frames.move_to_end(caller)
        self._bytes[caller] = self._bytes.get(caller, 0) + size_bytes
        for old in list(itertools.islice(self._frames, 2)):
            self._forget_sent(old)

    def num_bytes(self, caller: bytes) -> int:
        """What is queued for this caller now."""
        self._forget_sent(caller)
        return self._bytes.get(caller, 0)

    def _forget_sent(self, caller: bytes) -> None:
        frames = self._frames.get(caller)
        if frames is None:
            return
        while frames and frames[0][0].done:
            self._bytes[caller] -= frames.popleft()[1]
        if not frames:
            del self._frames[caller], self._bytes[caller]
