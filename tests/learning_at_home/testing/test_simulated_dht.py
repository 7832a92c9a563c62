"""The DHT's own code among many simulated peers."""

import asyncio
import random

from learning_at_home.testing import SimulatedDht, SimulatedNetwork, run_in_virtual_time

ROUND_TRIP_S = 0.1
KEYS = [bytes([number]) * 20 for number in range(12)]


def test_with_loss_and_a_tenth_of_the_peers_dead_every_get_is_right_in_a_few_round_trips():
    network = SimulatedNetwork(one_way_s=ROUND_TRIP_S / 2, loss=0.05, seed=1)
    durations: list[float] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with SimulatedDht(network) as dht:
            nodes = await dht.grow(60)
            chance = random.Random(1)
            for key in KEYS:
                await chance.choice(nodes).store(key, b"of " + key, 3_600)
            for node in chance.sample(nodes, 6):
                await dht.kill(node)
            for key in KEYS:
                began_s = loop.time()
                (record,) = await chance.choice(dht.living).get(key)
                assert record.value == b"of " + key
                durations.append(loop.time() - began_s)

    run_in_virtual_time(main(), network)
    durations.sort()
    assert durations[len(durations) // 2] <= 4 * ROUND_TRIP_S
    assert durations[-1] <= 10 * ROUND_TRIP_S


def test_a_peer_behind_nat_reads_and_writes_and_is_in_nobodys_table():
    network = SimulatedNetwork(seed=2)

    async def main() -> None:
        async with SimulatedDht(network) as dht:
            nodes = await dht.grow(8)
            hidden = await dht.join(behind_nat=True)
            assert await hidden.store(KEYS[0], b"value", 60) == 8
            assert [record.value for record in await hidden.get(KEYS[0])] == [b"value"]
            await asyncio.sleep(120)
            assert all(
                hidden.identity.peer_id != contact.node_id
                for node in nodes
                for contact in node._protocol.neighbourhood.contacts()
            )

    run_in_virtual_time(main(), network)
