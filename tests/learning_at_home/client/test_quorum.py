"""Tables for the bookkeeping of answers: what to do next, given who answered when."""

import numpy as np
import pytest

from learning_at_home.client.quorum import Ask, Done, Quorum, Rows, Wait

DEADLINE = 10.0


def quorum(num_rows: int = 1, k_min: int = 1, every_row: bool = True) -> Quorum:
    return Quorum(num_rows, k_min, grace_s=0.5, patience_s=2.0, deadline=DEADLINE, every_row=every_row)


def rows(*numbers: int) -> Rows:
    return np.array(numbers, dtype=np.int64)


def asked(decision: object) -> list[int]:
    assert isinstance(decision, Ask), decision
    return list(decision.rows)


def test_a_row_nobody_was_asked_for_needs_an_expert():
    assert asked(quorum(2).decide(0.0)) == [0, 1]


def test_before_any_answer_it_waits_until_patience_ends():
    q = quorum()
    q.asked(rows(0), 1.0)

    assert q.decide(1.5) == Wait(3.0)


def test_after_k_min_the_others_have_the_grace_time():
    q = quorum()
    q.asked(rows(0), 0.0)
    q.asked(rows(0), 0.0)
    q.answered(rows(0), 1.0)

    assert q.decide(1.0) == Wait(1.5)
    assert q.decide(1.5) == Done()


def test_when_all_have_answered_it_is_done_at_once():
    q = quorum(2)
    q.asked(rows(0, 1), 0.0)
    q.answered(rows(0, 1), 0.1)

    assert q.decide(0.1) == Done()
    assert list(q.short_rows()) == []


def test_the_grace_time_counts_from_the_row_that_still_waits():
    """Row 0 was content at 1.0 and waits for its second; row 1 became content at 5.0 and waits for nobody."""
    q = quorum(2)
    q.asked(rows(0, 1), 0.0)
    q.asked(rows(0), 0.0)
    q.answered(rows(0), 1.0)
    q.asked(rows(1), 4.9)
    q.failed(rows(1))
    q.answered(rows(1), 5.0)

    assert q.decide(5.0) == Done()


def test_no_grace_is_given_past_the_deadline():
    q = quorum()
    q.asked(rows(0), 0.0)
    q.asked(rows(0), 0.0)
    q.answered(rows(0), 9.8)

    assert q.decide(9.8) == Wait(DEADLINE)


def test_a_failure_that_leaves_too_few_asks_for_the_next_best():
    q = quorum(3)
    q.asked(rows(0, 1, 2), 0.0)
    q.failed(rows(1))

    assert asked(q.decide(0.1)) == [1]


def test_a_failure_of_one_of_several_asks_nobody():
    q = quorum()
    q.asked(rows(0), 0.0)
    q.asked(rows(0), 0.0)
    q.failed(rows(0))

    assert q.decide(0.1) == Wait(2.0)


def test_with_k_min_two_one_answer_and_one_failure_ask_for_one_more():
    q = quorum(k_min=2)
    q.asked(rows(0), 0.0)
    q.asked(rows(0), 0.0)
    q.answered(rows(0), 0.1)
    q.failed(rows(0))
    assert asked(q.decide(0.2)) == [0]
    q.asked(rows(0), 0.2)

    assert q.decide(0.2) == Wait(2.2)


def test_silence_asks_one_more_each_time_patience_ends():
    q = quorum()
    q.asked(rows(0), 0.0)
    assert asked(q.decide(2.0)) == [0]
    q.asked(rows(0), 2.0)

    assert q.decide(2.0) == Wait(4.0)
    assert asked(q.decide(4.0)) == [0]


def test_an_exhausted_row_waits_for_those_it_asked_until_the_deadline():
    q = quorum()
    q.asked(rows(0), 0.0)
    q.exhausted(rows(0))

    assert q.decide(3.0) == Wait(DEADLINE)
    assert q.decide(DEADLINE) == Done()
    assert list(q.short_rows()) == [0]


def test_a_postponed_row_asks_again_later():
    q = quorum(2)
    q.asked(rows(0, 1), 0.0)
    q.failed(rows(1))
    q.postpone(rows(1), 0.2)

    assert q.decide(0.1) == Wait(0.2)
    assert asked(q.decide(0.2)) == [1]


def test_one_lost_row_ends_a_round_that_needs_every_row():
    q = quorum(2)
    q.asked(rows(0, 1), 0.0)
    q.failed(rows(1))
    q.exhausted(rows(1))

    assert q.decide(0.1) == Done()
    assert list(q.short_rows()) == [0, 1]


def test_a_lost_row_does_not_end_a_round_that_takes_what_comes():
    q = quorum(2, every_row=False)
    q.exhausted(rows(0, 1))
    q.asked(rows(0, 1), 0.0)
    q.failed(rows(1))
    assert q.decide(0.1) == Wait(DEADLINE)
    q.answered(rows(0), 0.2)

    assert q.decide(0.2) == Done()
    assert list(q.rows_without_answer()) == [1]


@pytest.mark.parametrize("k_min", [1, 2, 3])
def test_any_order_of_answers_and_failures_ends(k_min: int):
    """Whoever follows the instructions comes to an end, whatever happens to the calls."""
    random = np.random.default_rng(k_min)
    for _ in range(50):
        num_rows, supply = 4, np.full(4, 5)
        q = quorum(num_rows, k_min)
        open_calls: list[int] = []
        now = 0.0
        for _ in range(200):
            match q.decide(now):
                case Done():
                    break
                case Ask(rows=short):
                    assert len(short)
                    for row in short:
                        if supply[row]:
                            supply[row] -= 1
                            q.asked(rows(row), now)
                            open_calls.append(row)
                        else:
                            q.exhausted(rows(row))
                case Wait(until=until):
                    assert until > now
                    now += (until - now) * random.random() + 1e-6
                    if open_calls:
                        row = open_calls.pop(random.integers(len(open_calls)))
                        if random.random() < 0.4:
                            q.answered(rows(row), now)
                        else:
                            q.failed(rows(row))
        else:
            pytest.fail("the quorum never came to an end")


@pytest.mark.parametrize("every_row", [True, False])
@pytest.mark.parametrize("k_min", [1, 2])
def test_a_decision_without_a_look_at_the_rows_is_the_one_with_it(k_min: int, every_row: bool):
    """Beside each quorum one that looks at every row each time, since something that is not an answer came before."""
    random = np.random.default_rng(10 * k_min + every_row)
    decisions = {Wait: 0, Ask: 0, Done: 0}
    for _ in range(200):
        q, looking = quorum(6, k_min, every_row), quorum(6, k_min, every_row)
        open_calls: list[Rows] = []
        now = 0.0
        for _ in range(5):
            call = random.permutation(6)[: random.integers(1, 6)]
            open_calls.append(call)
            q.asked(call, now)
            looking.asked(call, now)
        while True:
            looking.excuse(rows())
            decision, wanted = q.decide(now), looking.decide(now)
            decisions[type(decision)] += 1
            assert type(decision) is type(wanted)
            if isinstance(decision, Done):
                break
            if isinstance(decision, Ask):
                assert list(decision.rows) == asked(wanted)
                q.exhausted(decision.rows)
                looking.exhausted(decision.rows)
                continue
            assert isinstance(wanted, Wait)
            assert now < decision.until <= wanted.until
            if open_calls and random.random() < 0.9:
                call = open_calls.pop(random.integers(len(open_calls)))
                now += random.random() * min(0.3, decision.until - now)
                tell = Quorum.answered if random.random() < 0.9 else lambda q, call, _: q.failed(call)
                tell(q, call, now)
                tell(looking, call, now)
            else:
                now = decision.until
        assert list(q.short_rows()) == list(looking.short_rows())
        assert list(q.rows_without_answer()) == list(looking.rows_without_answer())
    assert min(decisions.values()) > 10, decisions
