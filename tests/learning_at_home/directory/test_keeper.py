"""The loop that keeps a directory fresh, and how often it asks."""

import asyncio

import pytest

from learning_at_home.directory import keeper
from learning_at_home.directory.directory import Directory
from learning_at_home.directory.keeper import RefreshPolicy, keep_fresh
from learning_at_home.errors import UnknownLayer


def test_it_asks_quickly_while_unsettled_and_then_less_and_less():
    policy = RefreshPolicy()
    waits_s, wait_s = [], policy.quick_s
    for unsettled in (True, True, False, False, False, False, True):
        wait_s = policy.next_wait_s(wait_s, unsettled=unsettled)
        waits_s.append(wait_s)

    assert waits_s == [3, 3, 4.5, 6.75, 10, 10, 3]


async def test_changes_of_any_cause_are_told_once(swarm, clock, fake_dht, monkeypatch: pytest.MonkeyPatch):
    """What the DHT brings, what expires, and what the process's own calls suspect."""
    monkeypatch.setattr(keeper, "TICK_S", 0.001)
    directory = Directory(swarm.project, clock)
    told: asyncio.Queue[frozenset[str]] = asyncio.Queue()
    fake_dht.records = [swarm.record(swarm.alice, {"ffn0": {0}, "ffn1": {0}})]
    async with asyncio.timeout(10):
        keeping = asyncio.create_task(
            keep_fresh(directory, fake_dht, ["ffn0"], clock, told.put_nowait, policy=RefreshPolicy(0.002, 0.002))
        )
        assert await told.get() == {"ffn0"}

        directory.report_failure(swarm.alice.public_key, clock.monotonic_s())
        assert await told.get() == {"ffn0"}
        clock.advance(1)
        assert await told.get() == {"ffn0"}

        fake_dht.records = []
        clock.advance(60)
        assert await told.get() == {"ffn0"}
        assert directory.layer("ffn0").num_alive == 0
        assert told.empty()

        keeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await keeping


async def test_a_layer_that_the_project_does_not_have_is_told_at_once(swarm, clock, fake_dht):
    with pytest.raises(UnknownLayer):
        await keep_fresh(Directory(swarm.project, clock), fake_dht, ["ffn9"], clock, lambda changed: None)
