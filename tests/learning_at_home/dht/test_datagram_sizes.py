"""Nothing longer than 1,200 bytes leaves a peer, forged requests flood nobody, and what is long still arrives."""

import asyncio
import itertools
import math
import os

import msgspec
import pytest

from learning_at_home.dht.address_proofs import FIRST_REQUEST_BYTES, UNPROVEN_FACTOR, HeldTokens, TokenIssuer
from learning_at_home.dht.contacts import Address
from learning_at_home.dht.datagrams import (
    CLIENT_ONLY,
    MAX_DATAGRAM_BYTES,
    NO_TOKEN,
    OVERHEAD_BYTES,
    REQUEST,
    Datagram,
    sealed_parts,
)
from learning_at_home.dht.messages import (
    PING_BYTES,
    FindNode,
    FindSlots,
    FindValue,
    Ping,
    Request,
    Store,
    StoreSlots,
    encode_request,
)
from learning_at_home.dht.node import DhtNode
from learning_at_home.dht.parts import MAX_MESSAGES, MAX_PER_SOURCE
from learning_at_home.dht.records import Record, key_of, sign_record
from learning_at_home.dht.slot_exchange import SlotAsk
from learning_at_home.directory.announcement import Announcement, Claim, node_key, prefix_name, spans_of
from learning_at_home.directory.publisher import publish
from learning_at_home.expert_uid import Grid
from learning_at_home.identity import Identity
from learning_at_home.project import LayerSpec, ProjectRecord
from learning_at_home.testing import SimulatedDht, SimulatedNetwork, run_in_virtual_time
from tests.learning_at_home.dht.stranger import MALLORY

KEY = b"k" * 20
LINES_EACH = 64
PROJECT = ProjectRecord(id="digits", layers=(LayerSpec(prefix="ffn0", grid=(1_024, 2)),))


class IPv6Network(SimulatedNetwork):
    """Everyone has a /48."""

    def next_ip(self) -> str:
        self._num_ips += 1
        return f"2400:0:{self._num_ips:x}:1111:2222:3333:4444:5555"


def announcement_of(number: int) -> Announcement:
    """Of the so-manieth node, with two cells in each of its lines."""
    first = number * 2 * LINES_EACH
    claim = Claim("ffn0", spans_of(set(range(first, first + 2 * LINES_EACH))), 0)
    return Announcement(
        project="digits", name="node", endpoints=("tcp://10.0.0.1:1",), state="online", issued_ms=0, claims=(claim,)
    )


def forget_tokens(node: DhtNode) -> None:
    node._protocol._questions._tokens = HeldTokens()


def record_of(node: DhtNode, person: Identity, key: bytes, num_bytes: int) -> Record:
    now_ms = node._wall_ms()
    return sign_record(person, key, b"v" * num_bytes, sequence=now_ms, expires_ms=now_ms + 60_000)


class Forger:
    """Sends requests of its own key's from addresses that are not its own."""

    def __init__(self, network: SimulatedNetwork, victim: DhtNode) -> None:
        self.num_bytes = 0
        self._network = network
        self._receiver = victim._bound
        self._pair_key = MALLORY.pair_key(victim.identity.public_key, "dht-datagram")
        self._loop = asyncio.get_running_loop()

    def send(
        self,
        request: Request,
        source: Address,
        *,
        least_bytes: int = 0,
        kind: int = REQUEST,
        token: bytes = NO_TOKEN,
        only: int = 100,
    ) -> None:
        """The first `only` datagrams of it."""
        message = encode_request(request, least_bytes)
        asked = Datagram(kind, os.urandom(20), MALLORY.public_key, message, token)
        for data in sealed_parts(asked, self._pair_key)[:only]:
            self.num_bytes += len(data)
            self._network.send(self._loop, data, source, self._receiver)


class Ear(asyncio.DatagramProtocol):
    """Counts what comes to an address."""

    def __init__(self) -> None:
        self.num_bytes = 0

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self.num_bytes += len(data)


@pytest.mark.slow
def test_no_datagram_of_a_busy_dht_is_longer_than_1200_bytes():
    """Announcements, slots, records of 4,000 bytes, joins and what is handed over, with the longer addresses."""
    network = IPv6Network(loss=0.05, seed=1)

    async def main() -> None:
        async with SimulatedDht(network) as dht:
            nodes = await dht.grow(24)
            for number in range(10):
                for author in nodes[number : number + 2]:
                    assert await author.store(bytes([number]) * 20, b"v" * 4_000, 60) >= 10
            for number, node in enumerate(nodes[:3]):
                await publish(node, PROJECT, announcement_of(number))
            (newcomer, *_) = await dht.grow(5)
            client = await dht.join(client_only=True)
            await asyncio.sleep(30)
            assert newcomer.status().num_records > 0
            for reader in (newcomer, client):
                found = await reader.find_many([bytes([number]) * 20 for number in range(10)])
                assert [len(each.records) for each in found.values()] == [2] * 10
                key = key_of(prefix_name("digits", "ffn0", PROJECT.layers[0].cells, ()))
                (slots,) = await reader.find_slots([SlotAsk(key)])
                assert (len(slots.lives_s), len(slots.records)) == (3 * LINES_EACH, 3)
            assert max(node._protocol.counters["parts_dropped"] for node in dht.living) < 20

    run_in_virtual_time(main(), network)
    assert MAX_DATAGRAM_BYTES - 100 < network.largest_bytes <= MAX_DATAGRAM_BYTES


@pytest.mark.parametrize("num_bytes", [100, 600, 700, 1_100, 4_000])
def test_a_record_of_any_size_is_found_by_one_who_was_never_heard_of(num_bytes: int):
    network = SimulatedNetwork()

    async def main() -> None:
        async with SimulatedDht(network) as dht:
            alice, bob = await dht.grow(2)
            for person in (Identity(b"1" * 32), Identity(b"2" * 32), Identity(b"3" * 32)):
                assert alice._storage.put(record_of(alice, person, KEY, num_bytes), alice._wall_ms()) is None
            forget_tokens(bob)

            assert [len(record.value) for record in await bob.get(KEY)] == [num_bytes] * 3

    run_in_virtual_time(main(), network)


def test_all_slots_of_a_wide_key_are_read_by_one_who_was_never_heard_of():
    """A thousand lives alone take more than a datagram has room for."""
    network = SimulatedNetwork()
    name = prefix_name("digits", "ffn0", PROJECT.layers[0].cells, ())

    async def main() -> None:
        async with SimulatedDht(network) as dht:
            alice, bob = await dht.grow(2)
            now_ms, records = alice._wall_ms(), []
            for number in range(1_024 // LINES_EACH):
                person, value = Identity(bytes([number]) * 32), announcement_of(number).to_bytes()
                record = sign_record(
                    person, node_key("digits", person.public_key), value, sequence=now_ms, expires_ms=now_ms + 60_000
                )
                assert alice._slots.put(record, name, now_ms) is None
                records.append(record)
            for covered in (None, lambda records: ()):
                forget_tokens(bob)
                (found,) = await bob.find_slots([SlotAsk(key_of(name), wanted=(1_023,), covered=covered)])
                assert (len(found.lives_s), found.records) == (1_024, (records[-1],))

    run_in_virtual_time(main(), network)


def test_a_long_request_to_one_who_never_heard_of_us_is_preceded_by_a_ping():
    network = SimulatedNetwork()

    async def main() -> None:
        async with SimulatedDht(network) as dht:
            alice, bob = await dht.grow(2)
            forget_tokens(bob)
            (contact,) = bob._protocol.neighbourhood.contacts()

            assert await bob._protocol.call_store(contact, record_of(bob, bob.identity, KEY, 4_000)) == ""
            assert alice.status().num_records == 1
            assert alice._protocol.counters["bad_datagrams"] == 0

    run_in_virtual_time(main(), network)


def test_a_peer_that_lost_its_tokens_in_a_restart_answers_short_requests_and_is_silent_once_to_long_ones():
    network = SimulatedNetwork()

    async def main() -> None:
        async with SimulatedDht(network) as dht:
            alice, bob = await dht.grow(2)
            (contact,) = bob._protocol.neighbourhood.contacts()
            record = record_of(bob, bob.identity, KEY, 4_000)

            alice._protocol._token_issuer = TokenIssuer()
            assert await bob._protocol.call_find_node(contact, KEY) == []
            assert await bob._protocol.call_store(contact, record) == ""

            alice._protocol._token_issuer = TokenIssuer()
            assert await bob._protocol.call_store(contact, record) is None
            assert await bob._protocol.call_store(contact, record) == ""

    run_in_virtual_time(main(), network)


REQUESTS: list[Request] = [Ping(), FindNode(KEY), FindValue(KEY, b""), FindSlots(KEY, 0, None, b"")]


@pytest.mark.parametrize("least_bytes", [PING_BYTES, FIRST_REQUEST_BYTES - OVERHEAD_BYTES, 1_000])
@pytest.mark.parametrize("kind, num_ports", [(REQUEST, 1), (REQUEST, 100), (REQUEST | CLIENT_ONLY, 1)])
def test_forged_requests_bring_their_victim_little_more_than_they_cost(least_bytes: int, kind: int, num_ports: int):
    network = SimulatedNetwork()

    async def main() -> None:
        async with SimulatedDht(network) as dht:
            alice, *_ = await dht.grow(12)
            for number in range(10):
                person = Identity(bytes([number]) * 32)
                assert alice._storage.put(record_of(alice, person, KEY, 600), alice._wall_ms()) is None
            for request in REQUESTS:
                ip, ear, forger = network.next_ip(), Ear(), Forger(network, alice)
                victims = [(ip, 1_000 + port) for port in range(num_ports)]
                for victim in victims:
                    network.open(asyncio.get_running_loop(), victim, ear)
                for victim in itertools.islice(itertools.cycle(victims), 200):
                    forger.send(request, victim, least_bytes=least_bytes, kind=kind, token=os.urandom(8))
                await asyncio.sleep(10)
                assert 0 < ear.num_bytes <= UNPROVEN_FACTOR * forger.num_bytes

    run_in_virtual_time(main(), network)


def test_a_flood_in_a_peers_name_does_not_silence_it():
    network = SimulatedNetwork()

    async def main() -> None:
        async with SimulatedDht(network) as dht:
            alice, bob = await dht.grow(2)
            (contact,) = bob._protocol.neighbourhood.contacts()
            forger = Forger(network, alice)

            async def flood() -> None:
                while True:
                    for _ in range(5):
                        forger.send(FindNode(KEY), (bob._bound[0], 1_000), token=os.urandom(8))
                    await asyncio.sleep(0.001)

            flooding = asyncio.create_task(flood())
            await asyncio.sleep(0.5)
            assert alice._protocol.counters["limited"] > 1_000

            answers = [await bob._protocol.call_find_node(contact, KEY) for _ in range(3)]
            flooding.cancel()
            assert answers == [[], [], []]

    run_in_virtual_time(main(), network)


def test_one_line_of_many_addresses_leaves_room_for_others_requests_in_parts():
    network = SimulatedNetwork()

    async def main() -> None:
        async with SimulatedDht(network) as dht:
            alice, _ = await dht.grow(2)
            forger, issuer = Forger(network, alice), alice._protocol._token_issuer
            for number in range(2 * MAX_PER_SOURCE):
                source = (f"2400:0:9:1::{number:x}", 1_000)
                token = issuer.token(MALLORY.public_key, source, asyncio.get_running_loop().time())
                forger.send(Store(KEY, b"r" * 4_000), source, token=token, only=1)
            await asyncio.sleep(0.2)
            assert len(alice._protocol._request_parts) == MAX_PER_SOURCE

    run_in_virtual_time(main(), network)


def test_a_flood_of_records_that_claim_thousands_of_slots_is_taken_as_slowly_as_it_costs():
    network = SimulatedNetwork()
    names = tuple(prefix_name("digits", "ffn0", Grid((8_192 + number,)), ()) for number in range(4))

    async def main() -> None:
        async with SimulatedDht(network) as dht:
            alice, _ = await dht.grow(2)
            forger, now_ms = Forger(network, alice), alice._wall_ms()
            claim = Claim("ffn0", ((0, 8_192),), 0)
            for number in range(20):
                person = Identity(bytes([number]) * 32)
                value = msgspec.structs.replace(announcement_of(0), claims=(claim,)).to_bytes()
                home = node_key("digits", person.public_key)
                record = sign_record(person, home, value, sequence=now_ms, expires_ms=now_ms + 60_000)
                forger.send(StoreSlots(record.to_bytes(), names), ("20.9.9.9", 1_000), least_bytes=300)
            await asyncio.sleep(1)
            assert alice._slots.num_claimed == 16_384
            assert alice._protocol.counters["limited"] == 19

    run_in_virtual_time(main(), network)


def test_parts_of_one_whose_address_is_not_proven_are_not_kept():
    network = SimulatedNetwork()

    async def main() -> None:
        async with SimulatedDht(network) as dht:
            alice, _ = await dht.grow(2)
            forger = Forger(network, alice)
            for _ in range(100):
                forger.send(Store(KEY, b"r" * 4_000), ("20.9.9.9", 1_000), token=os.urandom(8))
            await asyncio.sleep(1)
            protocol = alice._protocol
            assert len(protocol._request_parts) == 0
            assert protocol.counters["bad_datagrams"] == 100 * math.ceil(4_000 / (1_200 - OVERHEAD_BYTES))

    run_in_virtual_time(main(), network)


def test_a_thousand_requests_that_never_end_take_a_bounded_memory_and_others_stores_go_on():
    network = SimulatedNetwork()

    async def main() -> None:
        async with SimulatedDht(network) as dht:
            alice, bob, carol = await dht.grow(3)
            forger, issuer = Forger(network, alice), alice._protocol._token_issuer

            def flood(count: int) -> None:
                for number in range(count):
                    source = (f"20.8.{number >> 8}.{number & 255}", 1_000)
                    token = issuer.token(MALLORY.public_key, source, asyncio.get_running_loop().time())
                    forger.send(Store(KEY, b"r" * 4_000), source, token=token, only=1 + number % 3)

            flood(1_000)
            await asyncio.sleep(0.2)
            assert len(alice._protocol._request_parts) == MAX_MESSAGES
            assert alice._protocol.counters["parts_dropped"] >= 1_000 - MAX_MESSAGES

            for number in range(5):
                flood(200)
                assert await bob.store(bytes([number]) * 20, b"v" * 4_000, 60) == 3
                assert [len(record.value) for record in await carol.get(bytes([number]) * 20)] == [4_000]
            assert alice.status().num_records == 5

    run_in_virtual_time(main(), network)
