"""From counters to increments and rates.

A peer sends totals since its process started; a lost message then loses nothing. Here a total becomes what was added
since the last one (a new `started_s`, or a counter that fell, is a process that began again) and, over a window, a
rate. Pure.
"""

from __future__ import annotations

import dataclasses
import operator
from collections import deque
from dataclasses import dataclass, field

RATE_WINDOW_S = 12.0  # telemetry comes every 5 s: two or three messages are always inside
MAX_COUNT = 1 << 62  # what fits a BIGINT with room to spare
MAX_FLOP = 1e300
MAX_COUNT_AT_ONCE = 10**12  # in one message: a billion rows per second for a quarter of an hour
MAX_FLOP_AT_ONCE = 1e21  # an hour of a quarter of an exaflop per second


@dataclass(frozen=True, slots=True)
class Counters:
    """What a host counts of its work."""

    rows_forward: int = 0
    rows_backward: int = 0
    updates: int = 0
    calls: int = 0
    failures: int = 0
    flop: float = 0.0

    @property
    def rows(self) -> int:
        return self.rows_forward + self.rows_backward

    def __add__(self, other: Counters) -> Counters:
        """Sums, clamped so that what peers report can never overflow a column."""
        return Counters(
            min(MAX_COUNT, self.rows_forward + other.rows_forward),
            min(MAX_COUNT, self.rows_backward + other.rows_backward),
            min(MAX_COUNT, self.updates + other.updates),
            min(MAX_COUNT, self.calls + other.calls),
            min(MAX_COUNT, self.failures + other.failures),
            min(MAX_FLOP, self.flop + other.flop),
        )

    def capped(self) -> Counters:
        """What one message may add: nobody fills a column, or a chart's axis, by a single lie."""
        limits = (*(MAX_COUNT_AT_ONCE,) * (len(_names) - 1), MAX_FLOP_AT_ONCE)
        return Counters(*map(min, _values(self), limits))

    def since(self, earlier: Counters) -> Counters:
        """What was added after `earlier`; never below zero. Spelled out, for it is reckoned per expert and message."""
        if self is earlier:
            return NOTHING_DONE
        return Counters(
            self.rows_forward - earlier.rows_forward if self.rows_forward > earlier.rows_forward else 0,
            self.rows_backward - earlier.rows_backward if self.rows_backward > earlier.rows_backward else 0,
            self.updates - earlier.updates if self.updates > earlier.updates else 0,
            self.calls - earlier.calls if self.calls > earlier.calls else 0,
            self.failures - earlier.failures if self.failures > earlier.failures else 0,
            self.flop - earlier.flop if self.flop > earlier.flop else 0.0,
        )

    def fell_below(self, earlier: Counters) -> bool:
        """Whether any counter is smaller than it was, which a running process cannot do."""
        return (
            self.rows_forward < earlier.rows_forward
            or self.rows_backward < earlier.rows_backward
            or self.updates < earlier.updates
            or self.calls < earlier.calls
            or self.failures < earlier.failures
            or self.flop < earlier.flop
        )


NOTHING_DONE = Counters()
_names = tuple(each.name for each in dataclasses.fields(Counters))
_values = operator.attrgetter(*_names)


@dataclass(slots=True)
class CounterTrack:
    """The counters of one thing, across restarts of the process that counts."""

    started_s: float | None = None
    last: Counters = field(default_factory=Counters)

    def advance(self, started_s: float, counters: Counters) -> Counters:
        """What was added since the last call."""
        if counters == self.last and started_s == self.started_s:
            return NOTHING_DONE  # most experts of a large node, most of the time
        again = started_s != self.started_s or counters.fell_below(self.last)
        added = counters if again else counters.since(self.last)
        self.started_s, self.last = started_s, counters
        return added


@dataclass(slots=True)
class RateWindow:
    """Rates of accumulated counters over the last seconds. The first sample is a beginning, not work of that moment."""

    total: Counters = field(default_factory=Counters)
    samples: deque[tuple[float, Counters]] = field(default_factory=deque)

    def add(self, added: Counters, now: float, keep_s: float = RATE_WINDOW_S) -> None:
        """One more message; what came with the first one of all was done before and is in no rate."""
        if self.samples and added is not NOTHING_DONE:
            self.total += added
        self.samples.append((now, self.total))
        while len(self.samples) > 2 and self.samples[1][0] <= now - keep_s:
            self.samples.popleft()

    def per_second(self, now: float) -> Rates:
        """Means over the window; zero when nothing was heard for a whole window."""
        if len(self.samples) < 2 or self.samples[-1][0] <= now - RATE_WINDOW_S:
            return NO_RATES
        last_s, last = self.samples[-1]
        if last is self.samples[0][1]:
            return NO_RATES
        first_s, first = self.samples[-2]  # however long ago: a rate needs two
        for at_s, total in reversed(self.samples):
            if at_s <= last_s - RATE_WINDOW_S:
                break
            if at_s < first_s:
                first_s, first = at_s, total
        if last_s <= first_s:
            return NO_RATES
        added, span_s = last.since(first), last_s - first_s
        return Rates(
            added.rows_forward / span_s, added.rows_backward / span_s, added.updates / span_s, added.flop / span_s
        )

    def over_window(self) -> Counters:
        """What was added over all samples that are kept."""
        return self.samples[-1][1].since(self.samples[0][1]) if self.samples else NOTHING_DONE


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second."""

    rows_forward: float
    rows_backward: float
    updates: float
    flop: float

    @property
    def rows(self) -> float:
        return self.rows_forward + self.rows_backward

    def __add__(self, other: Rates) -> Rates:
        return Rates(
            self.rows_forward + other.rows_forward,
            self.rows_backward + other.rows_backward,
            self.updates + other.updates,
            self.flop + other.flop,
        )


NO_RATES = Rates(0.0, 0.0, 0.0, 0.0)


def three_digits(value: float) -> float:
    """Rounded to what a page shows, so that a number that hardly moved is not sent again."""
    return float(f"{value:.3g}")
