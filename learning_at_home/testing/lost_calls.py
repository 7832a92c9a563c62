"""Lose a share of a trainer's expert calls on the way: a request that never leaves, or a reply that is thrown away.

with lost_calls(swarm, share=0.1, seed=1) as lost:
    ...  # train
print(lost.requests, lost.replies, "of", lost.calls)

Connections are encrypted, so nobody between the two ends can tell messages apart; the trainer can, before they are
encrypted and after. Each call is lost for itself, also when several travel in one message. A call that is lost costs
what it would over a network: nobody is told, its request is not computed, and of a lost reply the node has done the
work and applied the update. Calls of the event loop and of other threads are lost alike.
"""

from __future__ import annotations

import contextlib
import math
import random
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from learning_at_home.clock import Clock
from learning_at_home.errors import ConfigError
from learning_at_home.peer_address import PeerAddress
from learning_at_home.transport.calls import Call, CallTable
from learning_at_home.transport.connections import Connections, Exchange
from learning_at_home.transport.links import Links
from learning_at_home.wire.messages import CHUNK_BYTES, Codec, Failure, Reply

if TYPE_CHECKING:
    from learning_at_home.client.swarm import Swarm


class LostCalls:
    """How many calls were made and lost. Thread-safe."""

    def __init__(self, share: float, seed: int) -> None:
        if not 0 <= share < 1:
            raise ConfigError(f"share={share}: between 0 and 1, and not all")
        self.share = share  # of calls; half of them, nearly, by their request. May be changed
        self.calls = 0
        self.requests = 0  # lost on their way to a node
        self.replies = 0  # lost on their way back
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        return self.requests + self.replies

    def sends(self, calls: Sequence[Call]) -> tuple[list[Call], list[Call]]:
        """Those of one message's calls that arrive, and those whose requests are lost."""
        lost = [call for call in calls if self._draws()] if self.share else []
        with self._lock:
            self.calls += len(calls)
            self.requests += len(lost)
        return ([call for call in calls if call not in lost] if lost else list(calls)), lost

    def loses_reply(self) -> bool:
        if not self.share or not self._draws():
            return False  # nearly always so; no lock on the way of every answer
        with self._lock:
            self.replies += 1
        return True

    def _draws(self) -> bool:
        """Each of the two ways loses as many of those that come to it: 1 - (1 - p)^2 is the share."""
        return self._random.random() < 1 - math.sqrt(1 - self.share)


class _LossyTable(CallTable):
    """Does not hear of the answers that are lost."""

    def __init__(self, ids: Iterator[int], lost: LostCalls) -> None:
        super().__init__(ids)
        self._lost = lost

    def replied(
        self, peer: PeerAddress, reply: Reply, frames: Sequence[Any], now: float, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        if not self._lost.loses_reply():
            super().replied(peer, reply, frames, now, chunk_bytes)

    def failed(self, peer: PeerAddress, failure: Failure, now: float) -> None:
        if failure.call_id is None or not self._lost.loses_reply():
            super().failed(peer, failure, now)


class _LossyExchange(Exchange):
    """Sends what is not lost, and waits for the rest in vain."""

    def __init__(
        self, lost: LostCalls, connections: Connections, links: Links, ids: Iterator[int], clock: Clock
    ) -> None:
        super().__init__(connections, links, ids, clock)
        self._lost = lost
        self._table = _LossyTable(ids, lost)

    def send(
        self,
        peer: PeerAddress,
        project: str,
        calls: Sequence[Call],
        deadline: float,
        codec: Codec = "none",
        reply_codec: Codec = "none",
    ) -> None:
        arriving, lost = self._lost.sends(calls)
        if lost:
            now = self._clock.monotonic_s()
            self._table.add(peer, lost, now, round(self._clock.wall_s() * 1000), deadline)
        if arriving:
            super().send(peer, project, arriving, deadline, codec, reply_codec)


@contextlib.contextmanager
def lost_calls(swarm: Swarm, share: float, seed: int = 0) -> Iterator[LostCalls]:
    """Until the end of the context, for rounds of calls that begin within it. Raises ConfigError for no such share."""
    lost = LostCalls(share, seed)
    connections = swarm.calls.connections
    connections.make_exchanges(partial(_LossyExchange, lost))
    try:
        yield lost
    finally:
        lost.share = 0.0  # of rounds that are still under way
        connections.make_exchanges(Exchange)
