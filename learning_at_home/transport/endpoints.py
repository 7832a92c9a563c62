"""Which of a peer's endpoints to connect to: the one that welcomed us soonest, others when it does not.

Pure: takes `now` (monotonic). Thread-safe: connections of all threads share what each has learned. A connection's
welcome measures its round trip without any computation of the node's, and costs no message of its own.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

AVOIDED_S = 60.0  # an endpoint that gave no welcome, while another one might
MAX_PEERS = 4_096  # of several endpoints each, about 1 MB; the one that was learned first is forgotten


@dataclass(slots=True)
class _Known:
    round_trip_s: float = math.inf  # the shortest welcome: what is longer was a full queue somewhere
    failed_s: float = -math.inf


class EndpointBook:
    """What is known of endpoints, for peers that have several."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._peers: dict[bytes, dict[str, _Known]] = {}

    def best(self, public_key: bytes, endpoints: Sequence[str], now: float) -> str:
        """One of these (at least one): that has not failed lately, then of the shortest round trip, then the first."""
        if len(endpoints) == 1:
            return endpoints[0]
        with self._lock:
            known = self._peers.get(public_key, {})

            def rank(endpoint: str) -> tuple[float, float]:
                its = known.get(endpoint)
                if its is None:
                    return -math.inf, math.inf
                return (its.failed_s if now < its.failed_s + AVOIDED_S else -math.inf), its.round_trip_s

            return min(endpoints, key=rank)

    def welcomed(self, public_key: bytes, endpoint: str, round_trip_s: float) -> None:
        """A connection was welcomed so long after it was begun."""
        with self._lock:
            its = self._endpoint(public_key, endpoint)
            its.round_trip_s = min(its.round_trip_s, round_trip_s)
            its.failed_s = -math.inf

    def failed(self, public_key: bytes, endpoint: str, now: float) -> None:
        """A connection ended without a welcome."""
        with self._lock:
            self._endpoint(public_key, endpoint).failed_s = now

    def _endpoint(self, public_key: bytes, endpoint: str) -> _Known:
        known = self._peers.get(public_key)
        if known is None:
            if len(self._peers) >= MAX_PEERS:
                del self._peers[next(iter(self._peers))]
            known = self._peers[public_key] = {}
        if endpoint not in known:
            known[endpoint] = _Known()
        return known[endpoint]
