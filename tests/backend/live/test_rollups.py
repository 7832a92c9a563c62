import pytest

from backend.live.rates import Counters
from backend.live.rollups import BEAT_HOURS, HOUR_S, Heartbeats, Rollup, RollupBook
from backend.series.service import MAX_POINTS, resolution_for, to_series
from tests.backend.kit import NOW


def test_a_book_adds_up_what_happens_in_one_span():
    book = RollupBook(10)
    book.at(NOW + 1).count(Counters(updates=2))
    book.at(NOW + 9.9).count(Counters(updates=3))
    book.at(NOW + 10).count(Counters(updates=5))

    assert {start_s: rollup.updates for start_s, rollup in book.take().items()} == {NOW: 5, NOW + 10: 5}
    assert book.take() == {}


@pytest.mark.parametrize(
    "seconds, word",
    [
        ({}, ""),
        ({"online_s": 3600}, "online"),
        ({"online_s": 10}, "online"),
        ({"online_s": 1700, "offline_s": 1900}, "offline"),
        ({"online_s": 3300, "offline_s": 300}, "stale"),
        ({"online_s": 3300, "degraded_s": 300}, "degraded"),
        ({"online_s": 1000, "paused_s": 2600}, "paused"),
    ],
)
def test_an_hour_has_one_word(seconds, word):
    assert Rollup(**seconds).beat == word


def test_a_day_of_heartbeats_has_one_word_per_hour_oldest_first():
    beats = Heartbeats()
    beats.spend("online", NOW - 30 * HOUR_S, 60)
    beats.spend("offline", NOW - HOUR_S, 60)
    beats.spend("online", NOW, 60)

    words = beats.words(NOW)
    assert len(words) == BEAT_HOURS
    assert words[-2:] == ("offline", "online")
    assert set(words[:-2]) == {""}


@pytest.mark.parametrize("span_s, resolution_s", [(600, 10), (3_600, 10), (86_400, 60), (7 * 86_400, 3_600)])
def test_a_chart_is_as_fine_as_its_points_allow(span_s, resolution_s):
    assert resolution_for(span_s) == resolution_s
    assert span_s / resolution_for(span_s) <= MAX_POINTS


def test_a_chart_of_rollups_has_rates_means_and_gaps():
    spans = [
        (0, Rollup(rows_forward=100, samples=2, serving_sum=20.0, latency_samples=2, p50_sum=8.0, p95_sum=40.0)),
        (10, Rollup(rows_forward=50)),
        (40, Rollup(rows_forward=10)),
    ]

    throughput = to_series("throughput", spans, 10)
    assert throughput.x == (0, 10, 20, 40)
    assert throughput.lines["forward"] == (10.0, 5.0, None, 1.0)
    assert to_series("latency", spans, 10).lines["p50"] == (4.0, None, None, None)
    assert to_series("experts", spans, 10).lines["serving"] == (10.0, None, None, None)
