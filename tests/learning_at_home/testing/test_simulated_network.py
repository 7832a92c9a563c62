"""Datagrams in memory: late, lost, or not let in."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from learning_at_home.dht.datagrams import MAX_DATAGRAM_BYTES
from learning_at_home.testing.simulated_network import NAT_LIFE_S, SimulatedNetwork
from learning_at_home.testing.virtual_time import run_in_virtual_time


class Peer(asyncio.DatagramProtocol):
    """Remembers what came, and when."""

    def __init__(self, ip: str) -> None:
        self.address = (ip, 7_000)
        self.heard: list[tuple[bytes, tuple[str, int], float]] = []
        self.closed = False

    async def open(self) -> "Peer":
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=self.address)
        return self

    def send(self, data: bytes, to: "Peer") -> None:
        self.transport.sendto(data, to.address)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.heard.append((data, addr, asyncio.get_running_loop().time()))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True


def between_two(scenario: Callable[[SimulatedNetwork, Peer, Peer], Awaitable[None]], **settings: Any) -> None:
    network = SimulatedNetwork(**settings)

    async def main() -> None:
        await scenario(network, await Peer(network.next_ip()).open(), await Peer(network.next_ip()).open())

    run_in_virtual_time(main(), network)


def test_a_datagram_arrives_after_its_way():
    async def scenario(network: SimulatedNetwork, alice: Peer, bob: Peer) -> None:
        sent_s = asyncio.get_running_loop().time()
        alice.send(b"hello", bob)
        await asyncio.sleep(1.0)
        ((data, sender, arrived_s),) = bob.heard
        assert (data, sender) == (b"hello", alice.address)
        assert 0.045 <= arrived_s - sent_s <= 0.055
        assert (network.num_sent, network.bytes_sent, network.largest_bytes) == (1, 5, 5)

    between_two(scenario, one_way_s=0.05, jitter=0.1)


def test_a_share_of_them_is_lost():
    async def scenario(network: SimulatedNetwork, alice: Peer, bob: Peer) -> None:
        for _ in range(2_000):
            alice.send(b"x", bob)
        await asyncio.sleep(1.0)
        assert 1_800 < len(bob.heard) < 1_960

    between_two(scenario, loss=0.05)


def test_the_silent_neither_speak_nor_hear_until_they_are_restored():
    async def scenario(network: SimulatedNetwork, alice: Peer, bob: Peer) -> None:
        network.silence(bob.address[0])
        alice.send(b"lost", bob)
        bob.send(b"lost", alice)
        await asyncio.sleep(1.0)
        assert alice.heard == bob.heard == []
        network.restore(bob.address[0])
        alice.send(b"heard", bob)
        await asyncio.sleep(1.0)
        assert [data for data, *_ in bob.heard] == [b"heard"]

    between_two(scenario)


def test_behind_a_nat_only_those_are_heard_who_were_spoken_to_a_moment_ago():
    async def scenario(network: SimulatedNetwork, alice: Peer, bob: Peer) -> None:
        network.put_behind_nat(bob.address[0])
        alice.send(b"too soon", bob)
        await asyncio.sleep(1.0)
        bob.send(b"here I am", alice)
        await asyncio.sleep(1.0)
        alice.send(b"in time", bob)
        await asyncio.sleep(NAT_LIFE_S)
        alice.send(b"too late", bob)
        await asyncio.sleep(1.0)
        assert [data for data, *_ in bob.heard] == [b"in time"]

    between_two(scenario)


def test_an_address_belongs_to_one_and_is_free_again_after_it():
    async def scenario(network: SimulatedNetwork, alice: Peer, bob: Peer) -> None:
        with pytest.raises(OSError, match="in use"):
            await Peer(alice.address[0]).open()
        alice.transport.close()
        await asyncio.sleep(0)
        assert alice.closed
        bob.send(b"nobody is there", alice)
        alice.send(b"nor speaks", bob)
        await asyncio.sleep(1.0)
        assert alice.heard == bob.heard == []
        await Peer(alice.address[0]).open()

    between_two(scenario)


def test_a_datagram_that_real_networks_would_take_apart_goes_nowhere_and_fails_the_run():
    async def scenario(network: SimulatedNetwork, alice: Peer, bob: Peer) -> None:
        alice.send(bytes(MAX_DATAGRAM_BYTES), bob)
        network.check()
        alice.send(bytes(MAX_DATAGRAM_BYTES + 1), bob)
        await asyncio.sleep(1.0)
        assert [len(data) for data, *_ in bob.heard] == [MAX_DATAGRAM_BYTES]

    with pytest.raises(AssertionError, match="1,201 bytes"):
        between_two(scenario)


def test_no_two_peers_have_an_address_and_neighbours_are_in_other_blocks():
    network = SimulatedNetwork()
    ips = [network.next_ip() for _ in range(70_000)]
    assert len(set(ips)) == len(ips)
    assert len({ip.rsplit(".", 1)[0] for ip in ips[:10_000]}) == 10_000
