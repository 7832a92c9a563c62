"""A `now` that does not jump while the clock is corrected, and follows it after a suspend."""

import pytest

from backend.live.steady_time import MAX_APART_S, SteadyTime
from learning_at_home.testing.manual_clock import ManualClock


@pytest.mark.parametrize("slewed_s", [0.0, 0.5, -0.5, MAX_APART_S])
def test_small_corrections_of_the_clock_do_not_show(slewed_s):
    clock = ManualClock()
    time = SteadyTime(clock)
    start_s = time.now()
    clock.advance(10)
    clock.set_wall_s(clock.wall_s() + slewed_s)

    assert time.now() == pytest.approx(start_s + 10)


@pytest.mark.parametrize("jump_s", [3_600.0, -3_600.0])
def test_it_follows_a_clock_that_was_set_and_is_steady_from_there(jump_s, caplog):
    clock = ManualClock()
    time = SteadyTime(clock)
    start_s = time.now()
    clock.set_wall_s(clock.wall_s() + jump_s)

    assert time.now() == pytest.approx(start_s + jump_s)
    clock.advance(5)
    assert time.now() == pytest.approx(start_s + jump_s + 5)
    assert len(caplog.records) == 1
