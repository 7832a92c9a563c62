"""Who is cut off and who is not, as tables of counts and times."""

from __future__ import annotations

import random

import pytest

from learning_at_home.transport.inflow_accounts import (
    FRAME_BYTES,
    MIB,
    UNNOTICED_BYTES,
    Cut,
    InflowAccounts,
    InflowLimits,
)

LIMITS = InflowLimits(connection_bytes=10 * MIB, total_bytes=30 * MIB, overdue_s=60.0, idle_s=3_900.0)
ALICE, BOB, CAROL = "198.51.100.1", "198.51.100.2", "198.51.100.3"


def accounts_of(*held_mib: tuple[str, int], at: float = 0.0) -> InflowAccounts:
    """Accounts of connections 0, 1, ... whose (neighbourhood, MiB) arrived at once and were not read."""
    accounts = InflowAccounts(LIMITS)
    for connection, (neighbourhood, mib) in enumerate(held_mib):
        accounts.opened(connection, neighbourhood, at)
        accounts.update(connection, mib * MIB, 0, at)
    return accounts


def test_an_unfinished_message_over_the_bound_is_cut():
    accounts = accounts_of((ALICE, 10), (BOB, 11))

    assert accounts.exceed_bounds()
    assert accounts.cut(now=0.0) == [Cut(1, BOB, 11 * MIB, "connection")]
    assert accounts.held_bytes == 10 * MIB
    assert not accounts.exceed_bounds()
    assert accounts.cut(now=0.0) == []


def test_what_the_node_has_read_is_not_held():
    accounts = accounts_of((ALICE, 9))

    accounts.update(0, arrived=18 * MIB, taken=9 * MIB, now=1.0)
    assert accounts.cut(now=1.0) == []

    accounts.update(0, arrived=18 * MIB, taken=9 * MIB, now=2.0)
    assert accounts.held_bytes == 0
    assert accounts.holding() == []


def test_over_the_bound_of_all_the_neighbourhood_that_holds_most_loses_its_largest():
    accounts = accounts_of((ALICE, 9), (BOB, 5), (BOB, 6), (BOB, 5), (CAROL, 7))

    assert [cut.connection for cut in accounts.cut(now=0.0)] == [2]
    assert accounts.held_bytes == 26 * MIB


def test_a_hundred_small_connections_do_not_push_out_one_large_request():
    accounts = accounts_of((ALICE, 9), *[(BOB, 1)] * 100)

    cuts = accounts.cut(now=0.0)

    assert {(cut.neighbourhood, cut.reason) for cut in cuts} == {(BOB, "total")}
    assert accounts.held_bytes == 30 * MIB


def test_overdue_messages_make_room_first():
    accounts = accounts_of((ALICE, 2), (BOB, 3))
    for connection in (2, 3, 4):
        accounts.opened(connection, CAROL, 61.0)
        accounts.update(connection, 9 * MIB, 0, 61.0)

    assert [cut.connection for cut in accounts.cut(now=61.0)] == [1]


def test_a_sender_whose_messages_are_read_is_not_overdue():
    accounts = accounts_of((ALICE, 9), (BOB, 8), (CAROL, 9))
    accounts.update(0, arrived=19 * MIB, taken=9 * MIB, now=50.0)
    accounts.opened(3, BOB, 61.0)
    accounts.update(3, 9 * MIB, 0, 61.0)

    assert accounts.cut(now=61.0) == [Cut(1, BOB, 8 * MIB, "total")]


def test_an_idle_connection_ends_after_the_longest_life_of_a_call():
    accounts = accounts_of((ALICE, 0), (BOB, 0))
    accounts.update(1, 100, 100, now=3_000.0)

    assert accounts.cut(now=3_899.0) == []
    assert accounts.cut(now=3_931.0) == [Cut(0, ALICE, 0, "idle")]
    assert len(accounts) == 1


def test_a_year_of_heartbeats_and_calls_leaves_nothing_held():
    """Two frames of 42 bytes every 5 s; a call a minute; everything looked at when it arrives, as the guard does."""
    accounts = InflowAccounts(InflowLimits())
    accounts.opened(0, ALICE, 0.0)
    arrived, most = 750, 0
    for beat in range(97, 365 * 86_400 // 5, 97):  # every 97th of them: the same sums in fewer steps
        now = beat * 5.0
        arrived += 97 * 84
        taken = 0
        if beat % 12 == 0:
            arrived += 1_000 + 2 * (33 + 2)
            taken = 1_000 + 2 * FRAME_BYTES
        accounts.update(0, arrived, taken, now)
        most = max(most, accounts.held_bytes)

    assert most == 0


def test_a_trickle_is_hidden_no_longer_than_a_connection_may_be_idle():
    accounts = InflowAccounts(LIMITS)
    accounts.opened(0, ALICE, 0.0)
    ended_at = next(now for now in range(0, 100_000, 30) if not feed(accounts, 30 * now, float(now)))

    assert ended_at <= LIMITS.idle_s + 30
    assert 30 * ended_at < 128 * 1024


def feed(accounts: InflowAccounts, arrived: int, now: float) -> bool:
    accounts.update(0, arrived, 0, now)
    return not accounts.cut(now)


def test_credit_is_not_saved_up():
    accounts = accounts_of((ALICE, 0))
    accounts.update(0, arrived=1_000, taken=100 * MIB, now=1.0)
    accounts.update(0, arrived=11 * MIB, taken=0, now=1.0)

    assert [cut.reason for cut in accounts.cut(now=1.0)] == ["connection"]


def test_the_account_of_a_new_connection_with_an_old_number_starts_empty():
    accounts = accounts_of((ALICE, 9))
    accounts.opened(0, BOB, now=5.0)

    assert accounts.held_bytes == 0
    accounts.closed(0)
    accounts.closed(0)
    assert len(accounts) == 0


def test_less_than_a_handshake_is_not_counted():
    accounts = accounts_of((ALICE, 0))
    accounts.update(0, UNNOTICED_BYTES, 0, 0.0)
    assert accounts.holding() == []
    accounts.update(0, UNNOTICED_BYTES + 1, 0, 0.0)
    assert accounts.holding() == [0]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_arrives_no_bound_is_passed_after_a_cut(seed: int):
    choose = random.Random(seed)
    accounts = InflowAccounts(LIMITS)
    arrived: dict[int, int] = {}
    for step in range(300):
        now = step / 50
        connection = choose.randrange(20)
        if connection not in arrived:
            accounts.opened(connection, choose.choice([ALICE, BOB, CAROL]), now)
            arrived[connection] = 0
        arrived[connection] += choose.randrange(12 * MIB)
        accounts.update(connection, arrived[connection], choose.randrange(6 * MIB), now)
        for cut in accounts.cut(now):
            del arrived[cut.connection]

        assert not accounts.exceed_bounds()
        assert accounts.held_bytes <= LIMITS.total_bytes
        assert len(accounts) == len(arrived)
