"""What a wide-area line does to bytes: when those that leave now arrive. Pure: takes `now`, draws from a seed.

Bytes of one connection arrive in their order, as TCP has it, and none is ever lost: a lost segment comes later.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal

from learning_at_home.errors import ConfigError

Jitter = Literal["normal", "exponential"]
WINDOW_BYTES = 4 * 2**20  # of a connection, one way: what Linux lets a TCP window grow to is about 6 MB
SEGMENT_BYTES = 1_448  # of TCP's data in a packet of 1,500 bytes
BURST_S = 0.1  # what leaves within this time behind other bytes that are under way has their delay


@dataclass(frozen=True, slots=True, kw_only=True)
class Wan:
    """A line between a node and everybody else. Making one raises ConfigError for what no line does.

    Every message of a request and its reply takes `delay_s` one way, so a call takes twice that longer.
    """

    delay_s: float = 0.0  # one way, the same each way
    jitter_s: float = 0.0  # normal: the standard deviation of the delay; exponential: the mean of what is added to it
    jitter: Jitter = "normal"
    bytes_per_s: float = math.inf  # each way, for all connections through the line together
    resent: float = 0.0  # share of TCP segments that are lost once: what follows waits a round trip more
    lost: float = 0.0  # share of messages, each way, that are lost; for connections without encryption (NULL) only
    window_bytes: int = WINDOW_BYTES  # of one connection, under way one way: more are not read from their sender
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("delay_s", self.delay_s), ("jitter_s", self.jitter_s)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name}={value}: a delay is finite and not negative")
        for name, value in (("resent", self.resent), ("lost", self.lost)):
            if not 0 <= value < 1:
                raise ConfigError(f"{name}={value}: a share lies between 0 and 1, and is not all")
        if self.jitter not in ("normal", "exponential"):
            raise ConfigError(f"jitter={self.jitter!r} is neither 'normal' nor 'exponential'")
        if not self.bytes_per_s > 0 or self.window_bytes < 1:
            raise ConfigError("bytes_per_s and window_bytes must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class WanCounters:
    """What went through a line since it began. Up: to the node; down: from it."""

    connections: int
    open_connections: int
    cut: int  # connections
    bytes_up: int  # delivered
    bytes_down: int
    held_bytes: int  # now, on their way
    most_held_bytes: int
    resent: int  # times that bytes had to wait for a lost segment
    messages: int  # seen; only while messages are lost are they looked at
    messages_lost: int


class Line:
    """One direction of a line, which all connections share."""

    def __init__(self, wan: Wan, seed: str) -> None:
        """`seed`: lines of one seed draw the same."""
        self.wan = wan  # may be replaced
        self.random = random.Random(f"{wan.seed}/{seed}")
        self.num_resent = 0
        self._free = -math.inf  # when the last byte of what was given to it has left

    def leaves(self, num_bytes: int, now: float) -> float:
        """When the last of so many bytes has left: behind all that came before, whosever it is."""
        self._free = max(now, self._free) + num_bytes / self.wan.bytes_per_s
        return self._free

    def draw_delay_s(self) -> float:
        wan = self.wan
        if not wan.jitter_s:
            return wan.delay_s
        if wan.jitter == "exponential":
            return wan.delay_s + self.random.expovariate(1 / wan.jitter_s)
        return max(0.0, self.random.gauss(wan.delay_s, wan.jitter_s))

    def resends(self, num_bytes: int) -> bool:
        """Whether one of the segments of so many bytes is lost and sent again."""
        wan = self.wan
        if not wan.resent:
            return False
        lost = self.random.random() >= (1 - wan.resent) ** math.ceil(num_bytes / SEGMENT_BYTES)
        self.num_resent += lost
        return lost


class Way:
    """One direction of a connection."""

    def __init__(self, line: Line, opened: float) -> None:
        """`opened`: when its first byte may leave at the earliest."""
        self._line = line
        self._earliest = opened
        self._last = -math.inf  # when the last of what is under way arrives
        self._drawn = -math.inf
        self._delay_s = 0.0

    def arrival(self, num_bytes: int, now: float) -> float:
        """When all of these bytes, which are sent now, will have arrived.

        What leaves within BURST_S while other bytes are under way has their delay, as one message has one: a new
        one for each part would make the message as late as the latest of them.
        """
        line = self._line
        leaves = line.leaves(num_bytes, max(now, self._earliest))
        if now >= self._last or now >= self._drawn + BURST_S:
            self._delay_s = line.draw_delay_s()
            self._drawn = now
        delay_s = self._delay_s
        if line.resends(num_bytes):
            delay_s += 2 * line.wan.delay_s
        self._last = max(self._last, leaves + delay_s)
        return self._last
