"""Requests of one address: a burst, then so many a second, whoever else asks."""

from learning_at_home.dht import rate_limits
from learning_at_home.dht.address_blocks import BlockLimits
from learning_at_home.dht.rate_limits import BURST, MAX_SOURCES, RATE_PER_S, SLOTS_PER_REQUEST, RateLimits


def admitted(limits: RateLimits, ip: str, now: float, tries: int, *, is_heard: bool = False) -> int:
    return sum(limits.admits(ip, is_heard, now) for _ in range(tries))


def test_a_burst_is_admitted_and_then_so_many_a_second():
    limits = RateLimits(BlockLimits())

    assert admitted(limits, "20.0.0.1", 0.0, 5_000) == BURST
    assert admitted(limits, "20.0.0.1", 1.0, 5_000) == RATE_PER_S
    assert admitted(limits, "20.0.0.1", 100.0, 5_000) == BURST


def test_a_flood_of_one_takes_nothing_from_others():
    limits = RateLimits(BlockLimits())
    admitted(limits, "20.0.0.1", 0.0, 5_000)

    assert limits.admits("20.0.0.2", False, 0.0)


def test_a_flood_in_the_name_of_one_takes_nothing_from_what_is_proven_to_be_its_own():
    limits = RateLimits(BlockLimits())
    admitted(limits, "20.0.0.1", 0.0, 5_000)

    assert admitted(limits, "20.0.0.1", 0.0, 5_000, is_heard=True) == BURST
    assert not limits.admits("20.0.0.1", True, 0.0)


def test_a_request_that_claims_many_slots_counts_for_many():
    limits = RateLimits(BlockLimits())
    assert limits.admits("20.0.0.1", False, 0.0)
    limits.charge("20.0.0.1", False, int(BURST + RATE_PER_S) * SLOTS_PER_REQUEST)

    assert not limits.admits("20.0.0.1", False, 1.0)
    assert admitted(limits, "20.0.0.1", 2.0, 5_000) == RATE_PER_S - 1
    assert admitted(limits, "20.0.0.1", 2.0, 5_000, is_heard=True) == BURST


def test_addresses_of_one_line_share_what_it_has():
    limits = RateLimits(BlockLimits())
    for number in range(10):
        admitted(limits, f"2a01:4f8:1:2::{number:x}", 0.0, 500)

    assert not limits.admits("2a01:4f8:1:2::ffff", False, 0.0)
    assert limits.admits("2a01:4f8:1:3::1", False, 0.0)


def test_the_machine_itself_home_networks_and_laboratories_are_exempt():
    assert admitted(RateLimits(BlockLimits()), "127.0.0.1", 0.0, 5_000) == 5_000
    assert admitted(RateLimits(BlockLimits()), "192.168.1.5", 0.0, 5_000) == 5_000
    assert admitted(RateLimits(BlockLimits(one_block=True)), "20.0.0.1", 0.0, 5_000) == 5_000


def test_a_clock_that_stands_still_or_steps_back_gives_nothing():
    limits = RateLimits(BlockLimits())
    admitted(limits, "20.0.0.1", 10.0, 5_000)

    assert not limits.admits("20.0.0.1", False, 5.0)


def test_addresses_without_end_are_not_all_remembered():
    limits = RateLimits(BlockLimits())
    for number in range(MAX_SOURCES + 100):
        limits.admits(f"20.{number >> 16}.{number >> 8 & 255}.{number & 255}", False, 0.0)

    assert len(limits._buckets) == rate_limits.MAX_SOURCES


def test_a_question_counts_for_as_many_as_it_has_targets_and_not_at_all_when_refused():
    limits = RateLimits(BlockLimits())

    assert limits.admits("20.0.0.1", False, 0.0, int(BURST) - 10)
    assert not limits.admits("20.0.0.1", False, 0.0, 11)
    assert limits.admits("20.0.0.1", False, 0.0, 10)
    assert not limits.admits("20.0.0.1", False, 0.0)
