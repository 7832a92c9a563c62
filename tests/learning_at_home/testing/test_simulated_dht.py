"""The DHT's own code among many simulated peers."""

import asyncio
import random
from typing import Any

import pytest

from learning_at_home.dht.contacts import Address
from learning_at_home.testing import SimulatedDht, SimulatedNetwork, run_in_virtual_time
from learning_at_home.testing.liars import Lie, make_liar

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


async def gets(dht: SimulatedDht, count: int) -> float:
    """The mean time of gets by anyone of what anyone stored, all right."""
    loop, chance = asyncio.get_running_loop(), random.Random(2)
    for key in KEYS:
        await chance.choice(dht.living).store(key, b"of " + key, 3_600)
    total_s = 0.0
    for number in range(count):
        began_s = loop.time()
        (record,) = await chance.choice(dht.living).get(KEYS[number % len(KEYS)])
        assert record.value == b"of " + KEYS[number % len(KEYS)]
        total_s += loop.time() - began_s
    return total_s / count


def test_settled_peers_are_as_far_from_a_key_as_those_that_joined_one_by_one():
    means_s = []
    for start in (SimulatedDht.grow, SimulatedDht.settle):
        network = SimulatedNetwork(one_way_s=ROUND_TRIP_S / 2, jitter=0.0, seed=3)

        async def main(network: SimulatedNetwork = network, start: Any = start) -> None:
            async with SimulatedDht(network) as dht:
                await start(dht, 120)
                means_s.append(await gets(dht, 60))

        run_in_virtual_time(main(), network)
    grown_s, settled_s = means_s
    assert abs(settled_s - grown_s) <= 0.5 * ROUND_TRIP_S


@pytest.mark.parametrize("lie", list(Lie))
def test_a_fifth_of_liars_make_no_get_wrong(lie: Lie):
    network = SimulatedNetwork(one_way_s=ROUND_TRIP_S / 2, seed=4)

    async def main() -> None:
        chance = random.Random(4)
        async with SimulatedDht(network) as dht:
            nodes = await dht.settle(60)
            liars = nodes[::5]
            honest = [node for node in nodes if node not in liars]
            for liar in liars:
                make_liar(liar, lie, liars, chance)
            for key in KEYS:
                publisher = chance.choice(honest)
                await publisher.store(key, b"of " + key, 3_600)
                found = {record.publisher: record.value for record in await chance.choice(honest).get(key)}
                assert found[publisher.identity.public_key] == b"of " + key

    run_in_virtual_time(main(), network)


def test_a_store_reaches_as_many_as_ever_though_a_third_of_the_peers_just_died():
    """Those that others tell of are then not k living ones: further ones of the own table serve."""
    network = SimulatedNetwork(one_way_s=ROUND_TRIP_S / 2, seed=1)

    async def main() -> None:
        chance = random.Random(6)
        async with SimulatedDht(network) as dht:
            for node in chance.sample(await dht.settle(90), 30):
                await dht.kill(node)
            stores = [chance.choice(dht.living).store(key, b"value", 60) for key in KEYS]  # at once: nobody knows yet
            assert min(await asyncio.gather(*stores)) == 20

    run_in_virtual_time(main(), network)


class TwoContinents(SimulatedNetwork):
    """Between them a datagram takes 75 ms, within one 2 ms."""

    def send(self, loop: asyncio.AbstractEventLoop, data: bytes, sender: Address, receiver: Address) -> None:
        self.one_way_s = 0.002 if _continent(sender) == _continent(receiver) else 0.075
        super().send(loop, data, sender, receiver)


def _continent(address: Address) -> bool:
    """Every fifth is on the small one."""
    return int(address[0].split(".")[-1]) % 5 == 0


def test_a_store_reaches_the_closest_wherever_they_are_and_returns_when_half_of_them_hold_it():
    network = TwoContinents(seed=3)
    at_return: list[int] = []
    in_the_end: list[int] = []

    async def main() -> None:
        chance = random.Random(3)
        async with SimulatedDht(network) as dht:
            await dht.grow(120, one_block=True)
            for _ in range(40):
                key = chance.randbytes(20)
                await chance.choice(dht.living).store(key, b"value", 3_600)
                at_return.append(num_holders(dht, key))
                await asyncio.sleep(1)
                in_the_end.append(num_holders(dht, key))

    def num_holders(dht: SimulatedDht, key: bytes) -> int:
        """Of the twenty closest."""
        place = int.from_bytes(key, "big")
        by_distance = sorted(dht.living, key=lambda node: int.from_bytes(node.identity.peer_id, "big") ^ place)
        return sum(bool(node._storage.records(key, node._wall_ms())) for node in by_distance[:20])

    run_in_virtual_time(main(), network)
    assert min(at_return) >= 10
    assert min(in_the_end) == 20
