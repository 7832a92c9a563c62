"""A clock that moves only when told to. Pure; not thread-safe."""

from __future__ import annotations


class ManualClock:
    """Implements learning_at_home.clock.Clock. Both times advance together; `set_wall_s` makes the wall clock wrong."""

    def __init__(self, wall_s: float = 1_800_000_000.0, monotonic_s: float = 1_000.0) -> None:
        self._wall_s = wall_s
        self._monotonic_s = monotonic_s

    def wall_s(self) -> float:
        return self._wall_s

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def advance(self, seconds: float) -> None:
        """Let time pass. Raises ValueError on a step back: monotonic time has none (see set_wall_s)."""
        if seconds < 0:
            raise ValueError(f"time does not go back by {-seconds} s; set_wall_s() sets a wall clock wrong")
        self._wall_s += seconds
        self._monotonic_s += seconds

    def set_wall_s(self, wall_s: float) -> None:
        """Step the wall clock, forward or back, as an operator or a time hint would; monotonic time stays."""
        self._wall_s = wall_s
