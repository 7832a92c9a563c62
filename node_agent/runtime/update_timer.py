"""When experts make the update for which they gather gradients, though too few rows came: in time, and at the end.

Used by whoever computes, one thread at a time; `is_due` and `wait_s` also by who decides who computes next. Takes
`now`.
"""

from __future__ import annotations

import logging
import math

from node_agent.experts.expert import Expert
from node_agent.experts.hosted import HostedExperts
from node_agent.runtime.computation import step_gathered
from node_agent.runtime.statistics import Statistics

log = logging.getLogger(__name__)

LEAST_WAIT_S = 1e-3  # what is due may have to wait until another thread has computed its batch


class UpdateTimer:
    """Which of a node's experts have gathered something, and until when it may wait.

    Not `is_needed` where no expert gathers anything: there is nothing to tell it or to ask it then.
    """

    def __init__(self, experts: HostedExperts, statistics: Statistics) -> None:
        self._experts = experts
        self._statistics = statistics
        self._due: dict[str, float] = {}  # of experts that have gathered something: monotonic, infinity without a limit
        self._first_due = math.inf
        self._is_gathering = False
        self._is_finishing = False
        self.is_needed = any(expert.gathers for expert in experts.by_uid.values())
        limits = [expert.layer.optimizer.update_seconds for expert in experts.by_uid.values()]
        self._shortest_s = min((seconds for seconds in limits if seconds is not None), default=math.inf)

    def is_due(self, now: float) -> bool:
        """Whether `step_due` has something to do."""
        return self._is_gathering and (self._is_finishing or self._first_due <= now)

    def wait_s(self, now: float) -> float | None:
        """After which time to look again, at the latest; None: no need to."""
        if self._shortest_s == math.inf:
            return None
        return max(LEAST_WAIT_S, min(self._first_due - now, self._shortest_s))

    def observe(self, expert: Expert, now: float) -> None:
        """The expert has computed a backward."""
        if not expert.gathers:
            return
        uid = str(expert.uid)
        if not expert.gathered.rows:
            self._due.pop(uid, None)
        elif uid not in self._due:
            seconds = expert.layer.optimizer.update_seconds
            self._due[uid] = math.inf if seconds is None else now + seconds
        self._look()

    def finish(self) -> None:
        """All that is gathered, now or later, is due."""
        self._is_finishing = True

    def step_due(self, now: float) -> None:
        """Make the updates that are due."""
        for uid in [uid for uid, due in self._due.items() if self._is_finishing or due <= now]:
            del self._due[uid]
            expert = self._experts.by_uid[uid]
            failure = step_gathered(expert)
            if failure is None:
                self._statistics.updated(uid, expert.updates, now)
            else:
                log.warning("an update was lost, whose gradients were gathered: %s", failure)
        self._look()

    def _look(self) -> None:
        self._first_due = min(self._due.values(), default=math.inf)
        self._is_gathering = bool(self._due)
