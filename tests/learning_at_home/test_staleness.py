"""How old gradients are: counts of the last minute or two, and what ties a backward to its forward."""

import pytest

from learning_at_home.staleness import GENERATION_S, Forwards, Staleness, StalenessFigures, figures_of


def test_the_median_and_the_largest_of_what_was_counted():
    staleness = Staleness()
    for updates in (3, 0, 7, 0, 1):
        staleness.record(updates, now=10.0)

    assert staleness.histogram(10.0) == {0: 2, 1: 1, 3: 1, 7: 1}
    assert figures_of(staleness.histogram(10.0)) == StalenessFigures(median=1, largest=7)
    assert figures_of({}) is None


def test_what_is_older_than_two_generations_is_forgotten_and_what_is_younger_than_one_never():
    staleness = Staleness()
    staleness.record(5, now=0.0)
    staleness.record(6, now=GENERATION_S - 1)

    assert staleness.histogram(GENERATION_S + 1) == {5: 1, 6: 1}
    staleness.record(7, now=GENERATION_S + 2)
    assert staleness.histogram(2 * GENERATION_S + 2) == {7: 1}
    assert staleness.histogram(10 * GENERATION_S) == {}


@pytest.mark.parametrize("updates", [255, 256, 1_000, 123_456_789])
def test_large_numbers_are_counted_to_a_percent(updates):
    staleness = Staleness()
    staleness.record(updates, now=0.0)

    assert list(staleness.histogram(0.0)) == [pytest.approx(updates, rel=0.01)]


def test_a_forward_is_taken_once_and_the_oldest_is_forgotten():
    forwards = Forwards(limit=2)
    for updates, forward in enumerate(["first", "second", "third"]):
        forwards.remember(forward, updates)

    assert [forwards.take(forward) for forward in ["first", "third", "third"]] == [None, 2, None]
