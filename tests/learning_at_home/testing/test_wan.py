"""When bytes arrive over a line: tables of times, no sockets."""

import math
import statistics

import pytest

from learning_at_home.errors import ConfigError
from learning_at_home.testing.wan import BURST_S, Line, Wan, Way


def test_bytes_arrive_after_the_delay():
    way = Way(Line(Wan(delay_s=0.05), "up"), opened=0.0)
    assert way.arrival(100, now=1.0) == pytest.approx(1.05)
    assert way.arrival(10**9, now=2.0) == pytest.approx(2.05), "without a bandwidth, size costs nothing"


def test_the_first_byte_of_a_connection_waits_until_it_is_open():
    way = Way(Line(Wan(delay_s=0.05), "up"), opened=1.1)
    assert way.arrival(1, now=1.0) == pytest.approx(1.15)


def test_all_connections_share_the_bandwidth():
    line = Line(Wan(delay_s=0.05, bytes_per_s=1_000.0), "up")
    one, other = Way(line, 0.0), Way(line, 0.0)
    assert one.arrival(500, now=0.0) == pytest.approx(0.55)
    assert other.arrival(500, now=0.0) == pytest.approx(1.05)
    assert one.arrival(100, now=5.0) == pytest.approx(5.15), "the line was free again"


@pytest.mark.parametrize("jitter", ["normal", "exponential"])
def test_jitter_never_changes_the_order_and_is_drawn_from_the_seed(jitter):
    def arrivals(seed: int) -> list[float]:
        way = Way(Line(Wan(delay_s=0.05, jitter_s=0.03, jitter=jitter, seed=seed), "up"), 0.0)
        return [way.arrival(10, now=number * BURST_S / 3) for number in range(300)]

    found = arrivals(1)
    assert found == sorted(found)
    assert found == arrivals(1)
    assert found != arrivals(2)


@pytest.mark.parametrize("jitter, mean, deviation", [("normal", 0.2, 0.03), ("exponential", 0.23, 0.03)])
def test_lone_messages_have_the_delays_that_were_asked_for(jitter, mean, deviation):
    way = Way(Line(Wan(delay_s=0.2, jitter_s=0.03, jitter=jitter), "up"), 0.0)
    delays = [way.arrival(10, now=float(number)) - number for number in range(3_000)]
    assert statistics.mean(delays) == pytest.approx(mean, abs=0.002)
    assert statistics.pstdev(delays) == pytest.approx(deviation, rel=0.1)
    assert min(delays) >= 0


def test_the_parts_of_one_message_have_one_delay():
    way = Way(Line(Wan(delay_s=0.2, jitter_s=0.05), "up"), 0.0)
    assert len({round(way.arrival(10, now=0.001 * part) - 0.001 * part, 9) for part in range(50)}) == 1


def test_a_lost_segment_comes_a_round_trip_later_and_so_does_what_follows():
    line = Line(Wan(delay_s=0.05, resent=0.02), "up")
    way = Way(line, 0.0)
    late = [way.arrival(1, now=float(number)) - number > 0.1 for number in range(5_000)]
    assert sum(late) == line.num_resent
    assert 60 < line.num_resent < 140

    line = Line(Wan(delay_s=0.05, resent=0.5, seed=3), "up")
    way = Way(line, 0.0)
    found = [way.arrival(1, now=0.001 * number) for number in range(20)]
    assert found == sorted(found)
    assert found[-1] >= 0.15, "half of all were lost"


@pytest.mark.parametrize(
    "wrong",
    [
        {"delay_s": -1.0},
        {"delay_s": math.inf},
        {"jitter_s": math.nan},
        {"resent": 1.0},
        {"lost": -0.1},
        {"jitter": "uniform"},
        {"bytes_per_s": 0.0},
        {"window_bytes": 0},
    ],
)
def test_what_no_line_does_is_refused(wrong):
    with pytest.raises(ConfigError):
        Wan(**wrong)
