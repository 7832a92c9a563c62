"""Many peers of one address block, and one who stores without end: what they get."""

import asyncio
import contextlib

from learning_at_home.dht.address_blocks import MAX_IN_BUCKET, MAX_IN_TABLE
from learning_at_home.dht.node import DhtNode
from learning_at_home.dht.records import sign_record
from learning_at_home.identity import Identity
from learning_at_home.testing import LoopClock, SimulatedDht, SimulatedNetwork, run_in_virtual_time
from learning_at_home.testing.simulated_dht import PORT

KEY = b"k" * 20


def nearest_identities(target: bytes, count: int, tried: int) -> list[Identity]:
    """Keys that an attacker made until so many had ids near the target."""
    made = [Identity(bytes([7]) * 28 + number.to_bytes(4, "big")) for number in range(tried)]
    place = int.from_bytes(target, "big")
    return sorted(made, key=lambda identity: int.from_bytes(identity.peer_id, "big") ^ place)[:count]


def test_fifty_ids_of_one_block_near_a_victim_get_none_of_its_buckets_and_hide_nothing():
    network = SimulatedNetwork(one_way_s=0.02, seed=5)

    async def main() -> None:
        async with SimulatedDht(network) as dht, contextlib.AsyncExitStack() as stack:
            await dht.grow(40)
            victim = await dht.join()
            attackers = nearest_identities(victim.identity.peer_id, 50, tried=1_000)
            for number, identity in enumerate(attackers):
                attacker = DhtNode(
                    identity,
                    f"30.0.0.{number + 1}",
                    PORT,
                    clock=LoopClock(asyncio.get_running_loop()),
                    bootstrap=[victim.address],
                )
                await stack.enter_async_context(attacker)
                attacker._protocol.records.put = lambda record, now_ms: None  # type: ignore[method-assign]  # it forgets all
            await asyncio.sleep(120)

            theirs = {attacker.peer_id for attacker in attackers}
            table = victim._protocol.router
            for bucket in table.buckets:
                bad = [node for node in bucket.get_nodes() if node.id in theirs]
                assert len(bad) <= MAX_IN_BUCKET
                assert len(bad) < bucket.ksize
            in_table = [node for bucket in table.buckets for node in bucket.get_nodes()]
            assert sum(node.id in theirs for node in in_table) <= MAX_IN_TABLE
            assert len([node for node in in_table if node.id not in theirs]) >= 20

            near_victim = victim.identity.peer_id
            assert await dht.living[3].store(near_victim, b"value", 60) >= 18
            for reader in (victim, dht.living[9]):
                assert [record.value for record in await reader.get(near_victim)] == [b"value"]

    run_in_virtual_time(main(), network)


def test_one_who_stores_without_end_takes_nobody_s_place_and_nobody_s_time():
    network = SimulatedNetwork(one_way_s=0.02, seed=6)

    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def timed_get() -> float:
            began_s = loop.time()
            (record,) = await dht.living[5].get(KEY)
            assert record.value == b"value"
            return loop.time() - began_s

        async with SimulatedDht(network) as dht:
            await dht.grow(12)
            await dht.living[1].store(KEY, b"value", 600)
            quiet_s = await timed_get()
            flooder = dht.living[2]
            now_ms = flooder._wall_ms()
            records = [
                sign_record(
                    flooder.identity,
                    number.to_bytes(20, "big"),
                    b"f" * 900,
                    sequence=now_ms,
                    expires_ms=now_ms + 600_000,
                )
                for number in range(700)
            ]
            flood = [
                flooder._protocol.call_store(contact, record)
                for record in records
                for contact in flooder._protocol.neighbourhood.contacts()[:3]
            ]
            async with asyncio.TaskGroup() as tasks:
                under_way = tasks.create_task(_all(flood))
                await asyncio.sleep(0.05)
                assert await timed_get() <= 2 * quiet_s
                await under_way
            assert await timed_get() <= 2 * quiet_s
            assert sum(node.status().refusals.get("publisher-quota", 0) for node in dht.living) > 0

    run_in_virtual_time(main(), network)


async def _all(calls) -> None:
    await asyncio.gather(*calls)
