"""Percentiles over a sliding minute."""

import pytest

from learning_at_home.latencies import WINDOW_S, LatencyWindow


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


def test_a_copy_stays_as_it_was():
    window = LatencyWindow()
    window.record(1.0, now=0.0)
    window.record(1.0, now=10.0)
    copy = window.copy(now=10.0)
    for _ in range(9):
        window.record(0.001, now=10.0)

    assert copy.percentiles_ms()[0] == pytest.approx(1000, rel=0.07)
    assert window.percentiles_ms(now=10.0)[0] == pytest.approx(1, rel=0.07)


def test_the_newest_seconds_alone_are_looked_at_to_a_slice():
    window = LatencyWindow()
    window.record(10.0, 0.0)
    window.record(0.1, 30.0)

    assert window.copy(35.0, last_s=10.0).percentiles_ms()[1] == pytest.approx(100.0, rel=0.1)
    assert window.copy(35.0).percentiles_ms()[1] == pytest.approx(10_000.0, rel=0.1)
