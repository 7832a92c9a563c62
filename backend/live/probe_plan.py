"""When to probe which node: a sampled expert every 15 s, at once when a node falls silent, again 1 s after a failure.
Pure.

A node that two failures have declared offline is left alone until it gives a sign of life itself (telemetry or a newer
announcement), so that the dead cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from backend.live.health import FAILURES_THAT_DECIDE

PROBE_EVERY_S = 15.0
PROBE_JITTER = 0.2
SECOND_PROBE_AFTER_S = 1.0  # from the start of the first to the start of the second
ALARM_PROBE_EVERY_S = 3.0  # while a node that answers has no live socket
PATIENT_TIMEOUT_S = 4.0  # a probe waits behind the work of trainers; a busy node is not a dead one
MIN_ALARM_TIMEOUT_S = 0.7  # two of these and the second between them stay under the 3 s that a person waits
MAX_ALARM_TIMEOUT_S = 1.3
ROUND_TRIPS_ALLOWED = 8.0


@dataclass(slots=True)
class ProbeSchedule:
    """When one node is probed next, and how patiently."""

    next_s: float | None = None  # None: not before a sign of life
    started_s: float = 0.0
    in_flight: bool = False
    alarmed: bool = False  # its socket dropped or fell silent: answer fast or be called gone
    round_trip_s: float | None = None  # smoothed, of answered probes

    def alarm(self, now: float) -> None:
        """Probe at once."""
        if not self.alarmed:
            self.alarmed = True
            self.next_s = now

    def calm(self, now: float) -> None:
        """The node was heard. One that was not probed for long, or never, is probed at once."""
        self.alarmed = False
        if self.next_s is None and not self.in_flight:
            self.next_s = now

    def hurry(self, now: float) -> None:
        """Something new is to be checked: probe at once, patiently."""
        self.next_s = now

    def is_due(self, now: float) -> bool:
        return not self.in_flight and self.next_s is not None and now >= self.next_s

    def start(self, now: float) -> float:
        """Begin a probe; the answer is how long it may take."""
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
            took_s = now - self.started_s
            self.round_trip_s = took_s if self.round_trip_s is None else 0.7 * self.round_trip_s + 0.3 * took_s
            if self.next_s is None:  # nobody asked for another one meanwhile
                wait_s = ALARM_PROBE_EVERY_S if self.alarmed else PROBE_EVERY_S * (1 + PROBE_JITTER * jitter)
                self.next_s = now + wait_s
        elif failures < FAILURES_THAT_DECIDE:
            self.next_s = max(now, self.started_s + SECOND_PROBE_AFTER_S)
        elif self.next_s is None:
            self.alarmed = False
