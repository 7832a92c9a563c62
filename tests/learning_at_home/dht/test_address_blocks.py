"""A few peers of each address block, and no limit where all are at home."""

from collections import Counter

import pytest

from learning_at_home.dht.address_blocks import MAX_IN_BUCKET, MAX_IN_TABLE, MAX_NEAREST, BlockLimits, block_of


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("20.1.2.3", "20.1.2.200", True),
        ("20.1.2.3", "20.1.3.3", False),
        ("2a00:1:2:3::1", "2a00:1:2:ffff::9", True),
        ("2a00:1:2::1", "2a00:1:3::1", False),
    ],
)
def test_a_block_is_a_24_of_ipv4_and_a_48_of_ipv6(one: str, other: str, same: bool):
    assert (block_of(one) == block_of(other)) is same


@pytest.mark.parametrize("ip", ["127.0.0.1", "192.168.1.7", "10.0.0.1", "169.254.0.9", "::1", "fd00::1", "fe80::1"])
def test_the_machine_and_the_home_have_no_limit(ip: str):
    assert BlockLimits().has_room(ip, iter([ip] * 20), iter([ip] * 200))


def test_a_block_fills_neither_a_bucket_nor_a_table():
    limits, ip = BlockLimits(), "20.1.2.3"
    assert limits.has_room(ip, iter([ip] * (MAX_IN_BUCKET - 1)), iter([ip] * (MAX_IN_TABLE - 1)))
    assert not limits.has_room(ip, iter([ip] * MAX_IN_BUCKET), iter([ip] * MAX_IN_BUCKET))
    assert not limits.has_room(ip, iter([]), iter([ip] * MAX_IN_TABLE))
    assert limits.has_room("20.1.3.3", iter([ip] * 20), iter([ip] * 20))


def test_a_few_of_a_block_count_among_the_nearest():
    nearer: Counter[bytes] = Counter()
    assert [BlockLimits().counts("20.1.2.3", nearer) for _ in range(4)] == [True] * MAX_NEAREST + [False] * 2


def test_a_laboratory_may_be_one_block():
    limits = BlockLimits(one_block=True)
    assert limits.has_room("20.1.2.3", iter(["20.1.2.4"] * 20), iter(["20.1.2.4"] * 20))
    assert all(limits.counts("20.1.2.3", Counter()) for _ in range(4))
