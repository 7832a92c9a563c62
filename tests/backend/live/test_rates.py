import pytest

from backend.live.rates import MAX_COUNT, Counters, CounterTrack, RateWindow, three_digits
from backend.live.token_bucket import TokenBucket


def updates(number: int) -> Counters:
    return Counters(updates=number)


@pytest.mark.parametrize(
    "messages, added",
    [
        ([(1.0, 5)], [5]),
        ([(1.0, 5), (1.0, 5), (1.0, 9)], [5, 0, 4]),
        pytest.param([(1.0, 5), (2.0, 3)], [5, 3], id="a new process counts from zero"),
        pytest.param([(1.0, 5), (2.0, 7)], [5, 7], id="a new process that is ahead already"),
        pytest.param([(1.0, 5), (1.0, 2)], [5, 2], id="a counter that fell began again"),
    ],
)
def test_totals_become_increments(messages, added):
    track = CounterTrack()

    assert [track.advance(started_s, updates(total)).updates for started_s, total in messages] == added


def test_sums_never_leave_what_a_column_holds():
    assert (Counters(rows_forward=MAX_COUNT) + Counters(rows_forward=MAX_COUNT)).rows_forward == MAX_COUNT
    assert (Counters(flop=1e300) + Counters(flop=1e300)).flop == 1e300


def window(*samples: tuple[float, int]) -> RateWindow:
    made = RateWindow()
    for now, added in samples:
        made.add(updates(added), now)
    return made


@pytest.mark.parametrize(
    "samples, now, per_second",
    [
        ([], 100.0, 0),
        pytest.param([(100, 1_000)], 100.0, 0, id="what came first was done before"),
        ([(100, 1_000), (105, 50)], 105.0, 10),
        ([(100, 0), (105, 50), (110, 100)], 111.0, 15),
        pytest.param([(0, 0), (100, 0), (105, 50)], 105.0, 10, id="long ago does not count"),
        pytest.param([(100, 0), (105, 50)], 118.0, 0, id="a silent peer has no rate"),
    ],
)
def test_a_rate_is_the_mean_over_the_window(samples, now, per_second):
    assert window(*samples).per_second(now).updates == pytest.approx(per_second)


@pytest.mark.parametrize("value, rounded", [(0.0, 0.0), (1234.5, 1230.0), (0.012345, 0.0123), (99.96, 100.0)])
def test_numbers_are_rounded_to_what_a_page_shows(value, rounded):
    assert three_digits(value) == rounded


def test_a_bucket_allows_its_burst_and_then_its_rate():
    bucket = TokenBucket(per_second=2, burst=3)

    assert [bucket.take(10.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.take(10.5)
    assert not bucket.take(10.5)


def test_a_debt_says_how_long_to_wait():
    bucket = TokenBucket(per_second=2, burst=1)

    assert [bucket.owe(10.0) for _ in range(3)] == [0.0, 0.5, 1.0]
    assert bucket.owe(20.0) == 0.0
