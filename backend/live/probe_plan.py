"""When to probe which node: a sampled expert every 15 s, at once when a node falls silent, again 1 s after a failure.
Pure.

A node that two failures have declared offline is left alone until it gives a sign of life itself (telemetry or a newer
announcement), so that the dead cost nothing; a sign of life that is followed by no answer is believed more and more
slowly. Whatever a node does, the probes that are made out of turn are few: it must not aim us at somebody else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from backend.live.health import FAILURES_THAT_DECIDE
from backend.live.token_bucket import TokenBucket

PROBE_EVERY_S = 15.0
PROBE_JITTER = 0.2
SECOND_PROBE_AFTER_S = 1.0  # from the start of the first to the start of the second
ALARM_PROBE_EVERY_S = 3.0  # while a node that answers has no live socket
ALARM_PROBES = 3  # so many of these; then it is a node without telemetry, probed like any other
IN_TURN_S = PROBE_EVERY_S * (1 - PROBE_JITTER)  # a probe sooner after the last one is out of turn
OUT_OF_TURN_PER_S, OUT_OF_TURN_BURST = 1 / 60, 8.0  # a node may die, come back and die again; not all day
FIRST_BACKOFF_S = 2.0  # after two failures, doubling to PROBE_EVERY_S
PATIENT_TIMEOUT_S = 4.0  # a probe waits behind the work of trainers; a busy node is not a dead one
MIN_ALARM_TIMEOUT_S = 0.7  # two of these and the second between them stay under the 3 s that a person waits
MAX_ALARM_TIMEOUT_S = 1.3
ROUND_TRIPS_ALLOWED = 8.0


def _few() -> TokenBucket:
    return TokenBucket(OUT_OF_TURN_PER_S, OUT_OF_TURN_BURST)


@dataclass(slots=True)
class ProbeSchedule:
    """When one node is probed next, and how patiently."""

    next_s: float | None = None  # None: not before a sign of life
    started_s: float = -math.inf
    in_flight: bool = False
    alarmed: bool = False  # its socket dropped or fell silent: answer fast or be called gone
    round_trip_s: float | None = None  # smoothed, of answered probes
    not_before_s: float = -math.inf  # it failed lately
    alarm_answers: int = 0  # since its socket is gone
    out_of_turn: TokenBucket = field(default_factory=_few)

    def alarm(self, now: float) -> None:
        """Probe at once, impatiently: somebody waits for the verdict."""
        if not self.alarmed:
            self.alarmed, self.alarm_answers = True, 0
            self._probe_after(0.0, now)

    def calm(self, now: float) -> None:
        """It talks to us again: probe in turn. A node that was to be left alone, or never probed, is probed soon."""
        self.alarmed = False
        if self.next_s is None and not self.in_flight:
            self.hurry(now)

    def hurry(self, now: float) -> None:
        """Something new is to be checked: probe soon."""
        self._probe_after(SECOND_PROBE_AFTER_S, now)

    def _probe_after(self, gap_s: float, now: float) -> None:
        """So long after the last probe, if it may be probed out of turn."""
        gap_s = gap_s if self.out_of_turn.has(now) else PROBE_EVERY_S
        soon_s = max(now, self.started_s + gap_s, self.not_before_s)
        self.next_s = soon_s if self.next_s is None else min(self.next_s, soon_s)

    def is_due(self, now: float) -> bool:
        return not self.in_flight and self.next_s is not None and now >= self.next_s

    def start(self, now: float) -> float:
        """Begin a probe; the answer is how long it may take."""
        if now - self.started_s < IN_TURN_S:
            self.out_of_turn.owe(now)
        self.in_flight, self.started_s, self.next_s = True, now, None
        return self.timeout_s

    @property
    def timeout_s(self) -> float:
        if not self.alarmed:
            return PATIENT_TIMEOUT_S
        usual_s = ROUND_TRIPS_ALLOWED * self.round_trip_s if self.round_trip_s is not None else MAX_ALARM_TIMEOUT_S
        return min(MAX_ALARM_TIMEOUT_S, max(MIN_ALARM_TIMEOUT_S, usual_s))

    def finish(self, now: float, *, answered: bool, failures: int, jitter: float) -> None:
        """The probe is over. `failures` counts those in a row, this one included; `jitter` is in -1..1."""
        self.in_flight = False
        if answered:
            self.not_before_s = -math.inf
            took_s = now - self.started_s
            self.round_trip_s = took_s if self.round_trip_s is None else 0.7 * self.round_trip_s + 0.3 * took_s
            if self.next_s is None:  # nobody asked for another one meanwhile
                soon = self.alarmed and self.alarm_answers < ALARM_PROBES and self.out_of_turn.has(now)
                self.alarm_answers += self.alarmed
                self.next_s = now + (ALARM_PROBE_EVERY_S if soon else PROBE_EVERY_S * (1 + PROBE_JITTER * jitter))
        elif failures < FAILURES_THAT_DECIDE:
            self.next_s = max(now, self.started_s + SECOND_PROBE_AFTER_S)
        else:
            doublings = min(failures - FAILURES_THAT_DECIDE, 8)
            self.not_before_s = self.started_s + min(PROBE_EVERY_S, FIRST_BACKOFF_S * 2**doublings)
            if self.next_s is None:
                self.alarmed = False
            else:
                self.next_s = max(self.next_s, self.not_before_s)

    def abandon(self, now: float) -> None:
        """The probe ended by a fault of ours and says nothing of the node."""
        self.in_flight = False
        self.next_s = now + PROBE_EVERY_S
