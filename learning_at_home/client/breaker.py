"""A circuit breaker per host of a layer: hosts that are slow or fail often, beside the layer's others, are put aside.

Pure: takes `now` (monotonic). A host that does not answer at all is the directory's concern
(directory/suspicions.py), which also keeps those that are put aside here out of the views. What counts as degraded is
the design's definition, which the coordinator uses too: over 4 times the layer's median, or over 5 % of calls failing,
for 30 s.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

SLOW_RATIO = 4.0
FAILED_SHARE = 0.05
DEGRADED_AFTER_S = 30.0
WELL_BELOW = 0.5  # of these limits: only below it is a host well again, so that one at the limit does not flap
WINDOW_S = 20.0  # of calls that are judged: a hiccup of a second is out of it before 30 s are over
MIN_CALLS = 20  # in the window; below, one failed call is over 5 %
MIN_HOSTS = 3  # a median of two is one of the two
FIRST_TERM_S, MAX_TERM_S = 30.0, 480.0  # put aside; longer than for the silent, since a trial costs a slow batch
TRIAL_CALLS = 8  # of a host that is back: so many decide

Circuit = Literal["closed", "open", "half open"]  # called; put aside; called again, on trial


@dataclass(frozen=True, slots=True)
class HostFigures:
    """One host's calls by this process. `calls` and `failures` are totals; the p95 is of the last WINDOW_S seconds."""

    name: str
    cells: int  # of the layer, that it holds
    calls: int
    failures: int
    p95_s: float | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A host's circuit has changed: put it aside until then (monotonic), or call it as before (None)."""

    public_key: bytes
    name: str
    until_s: float | None
    reason: str


@dataclass(slots=True)
class _Host:
    circuit: Circuit = "closed"
    looks: deque[tuple[float, int, int]] = field(default_factory=deque)  # when, calls, failures; within the window
    bad_since_s: float | None = None
    until_s: float = -math.inf
    terms: int = 0  # in a row

    def lately(self, figures: HostFigures, now: float) -> tuple[int, float]:
        """Calls in the window, and the share of them that failed."""
        self.looks.append((now, figures.calls, figures.failures))
        while len(self.looks) > 1 and self.looks[1][0] <= now - WINDOW_S:
            self.looks.popleft()
        _, calls, failures = self.looks[0]
        num_calls = figures.calls - calls
        return num_calls, (figures.failures - failures) / num_calls if num_calls else 0.0


@dataclass(frozen=True, slots=True)
class _Lately:
    calls: int
    failed_share: float
    p95_s: float | None


class Breaker:
    """The hosts of one layer. Not thread-safe."""

    def __init__(self, tolerated_s: float, k_min: int) -> None:
        """`tolerated_s`: a host whose p95 is below is not slow, whatever the others' is."""
        self._tolerated_s = tolerated_s
        self._k_min = k_min
        self._hosts: dict[bytes, _Host] = {}

    def circuit(self, public_key: bytes) -> Circuit:
        host = self._hosts.get(public_key)
        return host.circuit if host else "closed"

    def look(self, figures: Mapping[bytes, HostFigures], now: float, cells_aside: int = 0) -> list[Verdict]:
        """What changes. `figures`: of the hosts that can be called now; `cells_aside`: of the layer, on hosts that are
        put aside now, by whichever layer's breaker. To be called about once in a second.

        At most one host is put aside at a time, the worst; and never one without which fewer than half of the layer's
        experts, or than k_min, would be left.
        """
        lately: dict[bytes, _Lately] = {}
        for key, its in figures.items():
            host = self._hosts.setdefault(key, _Host())
            if host.circuit == "open" and now >= host.until_s:
                host.circuit, host.bad_since_s = "half open", None
                host.looks.clear()
            calls, share = host.lately(its, now)
            lately[key] = _Lately(calls, share, its.p95_s if calls else None)
        self._hosts = {  # also of hosts that left, while they may still come back from a term
            key: host for key, host in self._hosts.items() if key in figures or now < host.until_s + MAX_TERM_S
        }
        badness = {key: self._badness(key, lately) for key in figures if self._hosts[key].circuit != "open"}
        verdicts = [
            Verdict(key, figures[key].name, None, "")
            for key, bad in badness.items()
            if self._note(self._hosts[key], bad, lately[key], now)
        ]
        candidates = [key for key in badness if self._is_degraded(self._hosts[key], lately[key], now)]
        worst = max(candidates, key=lambda key: badness[key], default=None)
        if worst is not None and self._can_spare(worst, figures, cells_aside):
            verdicts.append(self._open(worst, figures[worst], lately, now))
        return verdicts

    def _badness(self, key: bytes, lately: Mapping[bytes, _Lately]) -> float:
        """How far a host is from the limits: over 1 beyond one of them, under WELL_BELOW well. 0 with few hosts."""
        others = [other for other_key, other in lately.items() if other_key != key and other.calls]
        if len(others) + 1 < MIN_HOSTS:
            return 0.0
        its = lately[key]
        usual_share = statistics.median(other.failed_share for other in others)
        failing = its.failed_share / max(FAILED_SHARE, SLOW_RATIO * usual_share)
        known = [other.p95_s for other in others if other.p95_s is not None]
        if its.p95_s is None or len(known) + 1 < MIN_HOSTS:
            return failing
        return max(failing, its.p95_s / max(self._tolerated_s, SLOW_RATIO * statistics.median(known)))

    def _note(self, host: _Host, badness: float, lately: _Lately, now: float) -> bool:
        """Since when it is bad; whether a trial has ended well."""
        if badness > 1:
            host.bad_since_s = now if host.bad_since_s is None else host.bad_since_s
        elif badness < WELL_BELOW and lately.calls:
            host.bad_since_s = None
            if host.circuit == "half open" and lately.calls >= TRIAL_CALLS:
                host.circuit, host.terms = "closed", 0
                return True
        return False

    def _is_degraded(self, host: _Host, lately: _Lately, now: float) -> bool:
        if host.bad_since_s is None:
            return False
        if host.circuit == "half open":
            return lately.calls >= TRIAL_CALLS
        return lately.calls >= MIN_CALLS and now - host.bad_since_s >= DEGRADED_AFTER_S

    def _can_spare(self, key: bytes, figures: Mapping[bytes, HostFigures], cells_aside: int) -> bool:
        left = sum(its.cells for its in figures.values()) - figures[key].cells
        return left >= max(self._k_min, (left + figures[key].cells + cells_aside) / 2)

    def _open(self, key: bytes, its: HostFigures, lately: Mapping[bytes, _Lately], now: float) -> Verdict:
        host = self._hosts[key]
        term_s = min(FIRST_TERM_S * 2.0 ** min(host.terms, 10), MAX_TERM_S)
        host.circuit, host.until_s, host.terms, host.bad_since_s = "open", now + term_s, host.terms + 1, None
        others = [other.p95_s for other_key, other in lately.items() if other_key != key and other.p95_s is not None]
        p95_s, median_s = its.p95_s or 0.0, statistics.median(others) if others else 0.0
        failed = 100 * lately[key].failed_share
        reason = f"p95 {p95_s:.3g} s where the others' median is {median_s:.3g} s, {failed:.0f} % of its calls fail"
        return Verdict(key, its.name, host.until_s, reason)
