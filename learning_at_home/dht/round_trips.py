"""How long peers take to answer, and so how long to wait for one. Pure: times are passed in.

Per peer the smoothed mean and deviation of its round trips, as TCP keeps them (Jacobson, 1988; RFC 6298); whoever has
not answered yet is expected to be like the others, and after one answer to deviate no more than all of them do.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from learning_at_home.dht.contacts import Address

FIRST_S = 0.25  # twice a slow round trip within a continent; while nobody has answered
LEAST_S = 0.03  # a busy event loop takes so long now and then, wherever the peer is
MOST_S = 1.0
MAX_PEERS = 4_096
NEARBY_S = 0.01  # both ends of a question together compute for 0.3 ms, and then each stands in the others' way
LATE_AT_FIRST = 0.1  # 5 % lost each way
_LATE_GAIN = 1 / 32  # forty answers in time, a few look-ups, make a tenth a thirtieth
_GAIN, _DEVIATION_GAIN, _DEVIATIONS = 1 / 8, 1 / 4, 4


class _Smoothed:
    __slots__ = ("deviation_s", "mean_s")

    def __init__(self, first_s: float, deviation_s: float) -> None:
        self.mean_s, self.deviation_s = first_s, deviation_s

    def add(self, seconds: float) -> None:
        self.deviation_s += _DEVIATION_GAIN * (abs(seconds - self.mean_s) - self.deviation_s)
        self.mean_s += _GAIN * (seconds - self.mean_s)

    def patience_s(self) -> float:
        return min(MOST_S, max(LEAST_S, self.mean_s + _DEVIATIONS * self.deviation_s))


class RoundTrips:
    """Of the peers that were asked lately."""

    def __init__(self) -> None:
        self._peers: OrderedDict[Address, _Smoothed] = OrderedDict()
        self._all: _Smoothed | None = None
        self._late = LATE_AT_FIRST  # the share of questions that were not answered in time, lately

    def note(self, address: Address, seconds: float) -> None:
        """A peer answered a request that was sent once. (After a second sending nobody knows which one it answers.)"""
        self._late -= _LATE_GAIN * self._late
        known = self._peers.get(address)
        if known is None:
            usual_s = seconds if self._all is None else self._all.deviation_s
            self._peers[address] = _Smoothed(seconds, min(seconds / 2, usual_s))
            if len(self._peers) > MAX_PEERS:
                self._peers.popitem(last=False)
        else:
            known.add(seconds)
            self._peers.move_to_end(address)
        if self._all is None:
            self._all = _Smoothed(seconds, seconds / 2)
        else:
            self._all.add(seconds)

    def note_late(self) -> None:
        """A peer has not answered in its time."""
        self._late += _LATE_GAIN * (1 - self._late)

    def spare(self, need: int, most: int) -> int:
        """Far from others `most`: they save a round trip now and then, by loss or because they know whom we do not.

        Nearby, where a question costs more than waiting does, as many as are late of `need` answers, and three
        deviations more: none where nothing is lost.
        """
        if self._all is None or self._all.mean_s > NEARBY_S:
            return most
        usual = need * self._late
        return min(most, round(usual + 3 * math.sqrt(usual * (1 - self._late))))

    def patience_s(self, address: Address) -> float:
        """After how long without an answer it is time to send again, and to ask somebody else."""
        known = self._peers.get(address) or self._all
        return FIRST_S if known is None else known.patience_s()

    def mean_s(self, address: Address) -> float | None:
        """What this peer takes to answer, smoothed; None while nothing was measured."""
        known = self._peers.get(address)
        return None if known is None else known.mean_s
