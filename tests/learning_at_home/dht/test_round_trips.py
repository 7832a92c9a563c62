"""How long to wait for whom."""

import pytest

from learning_at_home.dht.round_trips import FIRST_S, LEAST_S, MAX_PEERS, MOST_S, RoundTrips

NEAR, FAR, STRANGER = ("20.0.0.1", 1), ("20.0.0.2", 1), ("20.0.0.3", 1)


def test_while_nobody_has_answered_a_slow_way_is_assumed():
    assert RoundTrips().patience_s(STRANGER) == FIRST_S


def test_each_peer_is_given_what_it_takes_and_some_more():
    round_trips = RoundTrips()
    for _ in range(50):
        round_trips.note(NEAR, 0.02)
        round_trips.note(FAR, 0.3)

    assert round_trips.patience_s(NEAR) == LEAST_S
    assert round_trips.patience_s(FAR) == pytest.approx(0.3, abs=0.01)
    assert LEAST_S < round_trips.patience_s(STRANGER) <= MOST_S


def test_one_that_varies_is_given_more_than_one_that_does_not():
    steady, unsteady = RoundTrips(), RoundTrips()
    for number in range(50):
        steady.note(NEAR, 0.2)
        unsteady.note(NEAR, 0.1 if number % 2 else 0.3)

    assert unsteady.patience_s(NEAR) > 2 * steady.patience_s(NEAR)


def test_nobody_is_waited_for_longer_than_the_most():
    round_trips = RoundTrips()
    round_trips.note(NEAR, 100.0)
    assert round_trips.patience_s(NEAR) == MOST_S


def test_the_peers_that_were_silent_longest_are_forgotten():
    round_trips = RoundTrips()
    for port in range(MAX_PEERS + 10):
        round_trips.note(("20.0.0.1", port), 0.05)
    assert len(round_trips._peers) == MAX_PEERS


def test_nearby_as_many_more_are_asked_as_are_late_lately_and_far_away_always_the_most():
    round_trips = RoundTrips()
    assert round_trips.spare(5, most=3) == 3

    for _ in range(200):
        round_trips.note(NEAR, 0.002)
    assert round_trips.spare(5, most=3) == round_trips.spare(20, most=3) == 0

    for _ in range(200):
        round_trips.note(FAR, 0.1)
    assert round_trips.spare(5, most=3) == 3

    for number in range(200):
        round_trips.note(NEAR, 0.002)
        if number % 9 == 0:
            round_trips.note_late()
    assert round_trips.spare(5, most=3) == 3
