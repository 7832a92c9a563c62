"""UTC seconds that do not jump: the one `now` of everything live. Plain code."""

from __future__ import annotations

import logging

from learning_at_home.clock import Clock

log = logging.getLogger(__name__)

MAX_APART_S = 2.0  # a clock that is slewed stays within it; a machine that slept does not


class SteadyTime:
    """The wall clock at the start plus monotonic time since, so that durations are true while the clock is corrected.

    It follows the wall clock when the two are far apart: after a suspend, or when an operator set the clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset_s = clock.wall_s() - clock.monotonic_s()

    def now(self) -> float:
        steady_s, wall_s = self._clock.monotonic_s() + self._offset_s, self._clock.wall_s()
        if abs(steady_s - wall_s) <= MAX_APART_S:
            return steady_s
        log.warning("the clock of this machine jumped by %.1f s", wall_s - steady_s)
        self._offset_s += wall_s - steady_s
        return wall_s
