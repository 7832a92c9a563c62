"""Percentiles over a sliding minute, and totals."""

import pytest

from node_agent.runtime.latencies import WINDOW_S, LatencyWindow
from node_agent.runtime.statistics import Statistics


def test_percentiles_are_right_to_a_few_percent():
    window = LatencyWindow()
    for milliseconds in range(1, 101):
        window.record(milliseconds / 1000, now=1.0)

    p50_ms, p95_ms = window.percentiles_ms(now=2.0)

    assert p50_ms == pytest.approx(50, rel=0.07)
    assert p95_ms == pytest.approx(95, rel=0.07)


def test_durations_older_than_the_window_are_forgotten():
    window = LatencyWindow()
    window.record(1.0, now=0.0)
    window.record(0.001, now=30.0)

    assert window.percentiles_ms(now=WINDOW_S + 6)[1] == pytest.approx(1, rel=0.07)
    assert window.percentiles_ms(now=2 * WINDOW_S) == (None, None)


def test_nothing_recorded_is_no_percentile():
    assert LatencyWindow().percentiles_ms(now=1.0) == (None, None)


@pytest.mark.parametrize("duration_s", [0.0, 1e-9, 1e6])
def test_extreme_durations_are_recorded(duration_s):
    window = LatencyWindow()
    window.record(duration_s, now=0.0)

    assert window.percentiles_ms(now=0.0)[0] is not None


def test_work_is_counted_per_expert():
    statistics = Statistics(["a", "b"])
    statistics.answered("a", "forward", rows=3, flop=30.0, latency_s=0.01, updates=0, now=1.0)
    statistics.answered("a", "backward", rows=2, flop=60.0, latency_s=0.01, updates=1, now=2.0)
    statistics.failed("a")
    statistics.refuse()

    first, second = statistics.snapshot(now=5.0)

    assert (first.rows_forward, first.rows_backward, first.updates) == (3, 2, 1)
    assert (first.calls, first.failures, first.flop, first.update_age_s) == (3, 1, 90.0, 3.0)
    assert (second.calls, second.p50_ms, second.update_age_s) == (0, None, None)
    assert (statistics.rows, statistics.refused) == (5, 1)
