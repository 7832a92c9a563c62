"""Two times: `wall_s` crosses machines (UTC, may be wrong, corrected by hints), `monotonic_s` measures durations here.

Pure code takes `now`; only drivers hold a Clock. Tests use learning_at_home.testing.ManualClock.
"""

from __future__ import annotations

import time
from typing import Protocol

CLOCK_SKEW_TOLERATED_S = 10.0  # must stay well under the life of an announcement (60 s); a worse clock is told so


class Clock(Protocol):
    """What our drivers ask of a clock."""

    def wall_s(self) -> float:
        """Seconds since 1970, UTC."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since some moment; never goes back."""
        ...


class SystemClock:
    """The machine's clocks. `offset_s` is added to the wall clock: what the peers' time hints say this clock lacks."""

    def __init__(self, offset_s: float = 0.0) -> None:
        self.offset_s = offset_s

    def wall_s(self) -> float:
        return time.time() + self.offset_s

    monotonic_s = staticmethod(time.monotonic)  # as it is: every call of an expert asks a dozen times
