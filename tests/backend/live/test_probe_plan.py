from itertools import pairwise

import pytest

from backend.live.probe_plan import (
    ALARM_PROBE_EVERY_S,
    MAX_ALARM_TIMEOUT_S,
    MIN_ALARM_TIMEOUT_S,
    OUT_OF_TURN_BURST,
    OUT_OF_TURN_PER_S,
    PATIENT_TIMEOUT_S,
    PROBE_EVERY_S,
    SECOND_PROBE_AFTER_S,
    ProbeSchedule,
)


def probed(schedule: ProbeSchedule, start: float, end: float, *, failures: int = 0, jitter: float = 0.0) -> None:
    schedule.start(start)
    schedule.finish(end, answered=not failures, failures=failures, jitter=jitter)


def test_nothing_is_probed_before_a_sign_of_life():
    assert not ProbeSchedule().is_due(1_000.0)


@pytest.mark.parametrize("jitter, wait_s", [(0.0, PROBE_EVERY_S), (1.0, 18.0), (-1.0, 12.0)])
def test_an_answer_buys_fifteen_seconds_with_jitter(jitter, wait_s):
    schedule = ProbeSchedule()
    schedule.hurry(100.0)
    probed(schedule, 100.0, 100.1, jitter=jitter)

    assert schedule.next_s == pytest.approx(100.1 + wait_s)


def test_a_probe_under_way_is_not_made_twice():
    schedule = ProbeSchedule()
    schedule.hurry(100.0)
    schedule.start(100.0)
    schedule.hurry(100.5)

    assert not schedule.is_due(101.0)


def test_the_second_probe_starts_one_second_after_the_first_and_two_decide():
    schedule = ProbeSchedule()
    schedule.alarm(100.0)
    probed(schedule, 100.0, 100.7, failures=1)
    assert schedule.next_s == 101.0

    probed(schedule, 101.0, 101.7, failures=2)
    assert schedule.next_s is None


def test_a_dead_node_is_probed_again_at_its_next_sign_of_life():
    schedule = ProbeSchedule()
    schedule.alarm(100.0)
    probed(schedule, 100.0, 100.7, failures=1)
    probed(schedule, 101.0, 101.7, failures=2)
    schedule.hurry(200.0)

    assert schedule.is_due(200.0)
    assert schedule.timeout_s == PATIENT_TIMEOUT_S


@pytest.mark.parametrize(
    "round_trip_s, timeout_s",
    [(None, MAX_ALARM_TIMEOUT_S), (0.001, MIN_ALARM_TIMEOUT_S), (0.1, 0.8), (5.0, MAX_ALARM_TIMEOUT_S)],
)
def test_an_alarmed_probe_waits_as_long_as_the_node_is_usually_slow(round_trip_s, timeout_s):
    schedule = ProbeSchedule(round_trip_s=round_trip_s)
    schedule.alarm(100.0)

    assert schedule.timeout_s == pytest.approx(timeout_s)


def test_two_alarmed_failures_stay_under_three_seconds():
    assert 1.0 + MAX_ALARM_TIMEOUT_S < 3.0 - 0.5  # the rest is for the tick, the wire and the page


def test_an_alarmed_node_that_answers_is_asked_again_soon_until_it_talks():
    schedule = ProbeSchedule()
    schedule.alarm(100.0)
    probed(schedule, 100.0, 100.1)
    assert schedule.next_s == pytest.approx(100.1 + ALARM_PROBE_EVERY_S)

    schedule.calm(101.0)
    assert not schedule.alarmed


def test_a_sign_of_life_is_no_reason_to_probe_twice_in_a_second():
    schedule = ProbeSchedule()
    schedule.hurry(100.0)
    probed(schedule, 100.0, 100.1)
    schedule.hurry(100.2)

    assert schedule.next_s == 100.0 + SECOND_PROBE_AFTER_S


def test_whoever_talks_and_never_answers_is_probed_more_and_more_slowly():
    schedule, starts = ProbeSchedule(), []
    for tenth in range(1_000):
        now = 100 + tenth / 10
        schedule.calm(now)
        schedule.hurry(now)
        if schedule.is_due(now):
            starts.append(now)
            probed(schedule, now, now, failures=len(starts))

    gaps = [round(after - before, 1) for before, after in pairwise(starts)]
    assert gaps[:5] == pytest.approx([1, 2, 4, 8, 15], abs=0.11)
    assert all(gap >= PROBE_EVERY_S - 0.1 for gap in gaps[4:])


def test_an_answer_ends_the_backing_off():
    schedule = ProbeSchedule()
    schedule.hurry(100.0)
    for failures in (1, 2, 3):
        probed(schedule, 100.0 + failures, 100.0 + failures, failures=failures)
    probed(schedule, 130.0, 130.1)
    schedule.alarm(150.0)

    assert schedule.next_s == 130.1 + PROBE_EVERY_S


def test_a_node_whose_socket_stays_gone_is_probed_in_turn_after_a_few_answers():
    schedule, starts, now = ProbeSchedule(), [], 100.0
    schedule.alarm(now)
    while now < 300:
        if schedule.is_due(now):
            starts.append(now)
            probed(schedule, now, now)
        now += 0.5

    assert [after - before for before, after in pairwise(starts)][:5] == [3, 3, 3, 15, 15]


def test_nobody_has_us_probe_out_of_turn_all_day():
    schedule, starts, now = ProbeSchedule(), 0, 100.0
    while now < 100.0 + 3_600:
        schedule.calm(now)
        schedule.alarm(now)  # its socket comes and goes
        schedule.hurry(now)  # its announcement changes each time
        if schedule.is_due(now):
            starts += 1
            probed(schedule, now, now)
        now += 0.25

    assert starts <= 3_600 * (1 / PROBE_EVERY_S + OUT_OF_TURN_PER_S) + OUT_OF_TURN_BURST + 1


def test_a_probe_that_was_our_own_fault_is_made_again_in_turn():
    schedule = ProbeSchedule()
    schedule.hurry(100.0)
    schedule.start(100.0)
    schedule.abandon(100.5)

    assert not schedule.in_flight
    assert schedule.next_s == 100.5 + PROBE_EVERY_S
