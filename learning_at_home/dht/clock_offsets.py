"""How far the peers' wall clocks are from this machine's, by their time hints."""

from __future__ import annotations

import statistics
from collections import OrderedDict

from learning_at_home.clock import Clock
from learning_at_home.dht.contacts import Address

MAX_CLOCKS = 64  # peers whose time hints are remembered


class ClockOffsets:
    """Of the peers that told lately."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offsets_ms: OrderedDict[Address, int] = OrderedDict()

    def note(self, address: Address, wall_ms: int) -> None:
        """What the clock of the peer there shows now."""
        self._offsets_ms[address] = wall_ms - int(self._clock.wall_s() * 1000)
        self._offsets_ms.move_to_end(address)
        if len(self._offsets_ms) > MAX_CLOCKS:
            self._offsets_ms.popitem(last=False)

    def median_s(self) -> float | None:
        """None without any."""
        return statistics.median(self._offsets_ms.values()) / 1000 if self._offsets_ms else None
