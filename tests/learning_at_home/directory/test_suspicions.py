"""How long a peer that failed is left alone, as a table."""

from learning_at_home.directory.suspicions import FORGET_AFTER_S, Suspicions

PEER = b"p" * 32


def test_a_failure_after_the_term_doubles_the_next_one_and_one_within_does_not():
    suspicions = Suspicions()

    assert suspicions.fail(PEER, now=0)
    assert not suspicions.fail(PEER, now=0.9)
    assert suspicions.fail(PEER, now=1.0)
    assert suspicions.until_s(PEER) == 3.0


def test_old_failures_are_forgotten_in_time():
    suspicions = Suspicions()
    suspicions.fail(PEER, now=0)

    suspicions.prune(now=FORGET_AFTER_S)
    assert PEER in suspicions.by_key
    suspicions.prune(now=1 + FORGET_AFTER_S)
    assert PEER not in suspicions.by_key


def test_a_very_long_row_of_failures_does_not_overflow():
    suspicions = Suspicions()
    for number in range(5_000):
        suspicions.fail(PEER, now=number * 100.0)

    assert suspicions.until_s(PEER) == 499_900.0 + 30


def test_a_peer_that_was_put_aside_stays_so_whatever_it_answers():
    suspicions = Suspicions()
    suspicions.put_aside(PEER, until_s=30.0)
    suspicions.fail(PEER, now=1.0)
    suspicions.clear(PEER)

    assert [(suspicion.failures, suspicion.until_s) for suspicion in suspicions.active(29.9)] == [(0, 30.0)]
    assert suspicions.active(30.0) == ()
    suspicions.prune(now=30.0)
    assert suspicions.active(29.9) == ()


def test_of_a_peer_that_was_put_aside_and_is_silent_the_longer_term_counts():
    suspicions = Suspicions()
    suspicions.put_aside(PEER, until_s=0.5)
    suspicions.fail(PEER, now=0.0)
    assert [suspicion.until_s for suspicion in suspicions.active(0.1)] == [1.0]

    suspicions.put_aside(PEER, until_s=5.0)
    assert [suspicion.until_s for suspicion in suspicions.active(0.1)] == [5.0]
