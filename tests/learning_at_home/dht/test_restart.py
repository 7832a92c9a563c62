"""Peers that come back, and peers that start together: one network, without anybody's help."""

import asyncio
import contextlib
import socket
import time
from pathlib import Path

import pytest

from learning_at_home.dht.node import DhtNode
from learning_at_home.dht.peer_cache import PeerCache
from learning_at_home.errors import BootstrapFailed
from learning_at_home.identity import Identity
from learning_at_home.testing import LoopClock, SimulatedDht, SimulatedNetwork, run_in_virtual_time
from learning_at_home.testing.simulated_dht import PORT

KEY = b"k" * 20
BACK_S = 3.0


def test_a_peer_that_was_down_for_an_hour_is_back_from_its_peer_cache_alone(tmp_path: Path):
    """Half of those that it knew are gone, and so is every bootstrap peer."""
    network = SimulatedNetwork(one_way_s=0.05, loss=0.05, seed=3)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with SimulatedDht(network) as dht:
            await dht.grow(40)
            sleeper = await dht.join(peer_cache=tmp_path / "peers.json")
            await asyncio.sleep(60)
            await dht.kill(sleeper)
            assert len(PeerCache(tmp_path / "peers.json").load()) >= 20
            for gone in dht.living[:20]:
                await dht.kill(gone)
            await asyncio.sleep(3_600)
            await dht.living[0].store(KEY, b"value", 600)

            began_s = loop.time()
            async with DhtNode(
                sleeper.identity,
                network.next_ip(),
                PORT,
                clock=LoopClock(loop),
                peer_cache=tmp_path / "peers.json",
            ) as woken:
                (record,) = await woken.get(KEY)
                assert record.value == b"value"
                assert loop.time() - began_s < BACK_S
                assert woken.num_peers >= 15

    run_in_virtual_time(main(), network)


def test_a_peer_that_is_killed_soon_after_its_start_has_kept_its_peers(tmp_path: Path):
    """Without any end of its own: only what it wrote while it ran is left."""
    network = SimulatedNetwork(seed=5)
    cache = PeerCache(tmp_path / "peers.json")

    async def main() -> None:
        async with SimulatedDht(network) as dht:
            await dht.grow(10)
            await dht.join(peer_cache=tmp_path / "peers.json")
            await asyncio.sleep(10)
            assert len(cache.load()) == 10
            await dht.grow(5)
            await asyncio.sleep(60)
            assert len(cache.load()) == 15

    run_in_virtual_time(main(), network)


def test_a_peer_that_was_cut_off_when_it_started_finds_its_peers_when_the_line_is_back(tmp_path: Path):
    network = SimulatedNetwork(seed=4)

    async def main() -> None:
        async with SimulatedDht(network) as dht:
            await dht.grow(10)
            sleeper = await dht.join(peer_cache=tmp_path / "peers.json")
            await dht.kill(sleeper)
            others = [node._bound[0] for node in dht.living]
            for ip in others:
                network.silence(ip)
            woken = await dht.join(bootstrap=[], peer_cache=tmp_path / "peers.json")
            assert woken.num_peers == 0
            for ip in others:
                network.restore(ip)
            await asyncio.sleep(10)
            assert woken.num_peers == 10

    run_in_virtual_time(main(), network)


async def test_over_sockets_a_peer_is_back_from_its_cache_and_needs_no_bootstrap_peer(tmp_path: Path):
    cache = tmp_path / "peers.json"
    async with asyncio.timeout(20), contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(DhtNode(Identity.generate()))
        for _ in range(4):
            await stack.enter_async_context(DhtNode(Identity.generate(), bootstrap=[first.address]))
        sleeper = Identity.generate()
        async with DhtNode(sleeper, bootstrap=[first.address], peer_cache=cache):
            await first.store(KEY, b"value", 60)

        began_s = time.monotonic()
        async with DhtNode(sleeper, peer_cache=cache) as woken:
            assert [record.value for record in await woken.get(KEY)] == [b"value"]
        assert time.monotonic() - began_s < BACK_S

        async with DhtNode(sleeper, peer_cache=cache, client_only=True) as client:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
                silent.bind(("127.0.0.1", 0))
                dead = f"127.0.0.1:{silent.getsockname()[1]}"
                assert await client.bootstrap([dead], require=True) == 0  # known peers are enough

        async with DhtNode(sleeper, peer_cache=tmp_path / "other.json") as alone:
            with pytest.raises(BootstrapFailed):
                await alone.bootstrap([alone.address], require=True)
        assert not (tmp_path / "other.json").exists()


@pytest.mark.parametrize("seed", range(50))
def test_four_peers_that_start_in_one_second_with_one_list_form_one_network(seed: int):
    """Each names all four; who is up when another asks, and which datagrams are lost, is drawn from the seed."""
    network = SimulatedNetwork(one_way_s=0.05, loss=0.2, seed=seed)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ips = [network.next_ip() for _ in range(4)]
        addresses = [f"{ip}:{PORT}" for ip in ips]
        starts_s = [network.random.random() for _ in range(4)]

        async def start(number: int, ip: str) -> DhtNode:
            await asyncio.sleep(starts_s[number])
            node = DhtNode(Identity(bytes([number + 1] * 32)), ip, PORT, clock=LoopClock(loop), bootstrap=addresses)
            return await stack.enter_async_context(node)

        async with contextlib.AsyncExitStack() as stack:
            nodes = await asyncio.gather(*(start(number, ip) for number, ip in enumerate(ips)))
            async with asyncio.timeout(20):
                while [node.num_peers for node in nodes] != [3, 3, 3, 3]:
                    await asyncio.sleep(0.1)

    run_in_virtual_time(main(), network)
