"""Announcements and projects through real DHT peers on 127.0.0.1."""

import asyncio
import contextlib
import os
import zlib
from collections.abc import AsyncIterator

import pytest

from learning_at_home.dht.node import DhtNode
from learning_at_home.dht.slot_exchange import SlotAsk
from learning_at_home.directory.announcement import Announcement, Claim, node_key, project_key
from learning_at_home.directory.directory import Directory
from learning_at_home.directory.publisher import fetch_project, publish, publish_project, withdraw
from learning_at_home.directory.slot_rule import AnnouncementSlots
from learning_at_home.errors import AmbiguousProject, RecordRefused, UnknownProject
from learning_at_home.identity import Identity
from learning_at_home.project import LayerSpec, ProjectRecord
from learning_at_home.testing import SimulatedDht, SimulatedNetwork, run_in_virtual_time


@contextlib.asynccontextmanager
async def peers(*identities: Identity) -> AsyncIterator[list[DhtNode]]:
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(20):
        nodes: list[DhtNode] = []
        for identity in identities:
            nodes.append(
                await stack.enter_async_context(
                    DhtNode(
                        identity,
                        bootstrap=[nodes[0].address] if nodes else [],
                        slot_rule=AnnouncementSlots(),
                    )
                )
            )
        yield nodes


async def test_what_a_node_publishes_every_peer_s_directory_finds(swarm):
    async with peers(swarm.alice, swarm.bob) as (alice, bob):
        directory = Directory(swarm.project, bob.clock)
        announcement = swarm.announcement({"ffn0": {0, 5}, "ffn1": {1}}, name="otter")

        assert await publish(alice, swarm.project, announcement) == 2
        assert await directory.refresh(bob) == {"ffn0", "ffn1"}

        address = directory.find("ffn0.1.2")
        assert address is not None
        assert (address.public_key, address.name) == (swarm.alice.public_key, "otter")
        (announced,) = directory.all_announcements()
        assert announced.announcement == announcement


async def test_what_it_withdraws_is_gone_at_the_next_refresh(swarm):
    async with peers(swarm.alice, swarm.bob) as (alice, bob):
        directory = Directory(swarm.project, bob.clock)
        announcement = swarm.announcement({"ffn0": {0}, "ffn1": {1}})
        await publish(alice, swarm.project, announcement)
        await directory.refresh(bob)

        await withdraw(alice, swarm.project, announcement)

        assert await directory.refresh(bob) == {"ffn0", "ffn1"}
        assert directory.all_announcements() == ()


async def test_a_layer_that_a_node_no_longer_serves_is_withdrawn_with_the_next_announcement(swarm):
    async with peers(swarm.alice, swarm.bob) as (alice, bob):
        directory = Directory(swarm.project, bob.clock)
        both = swarm.announcement({"ffn0": {0}, "ffn1": {1}})
        await publish(alice, swarm.project, both)
        await directory.refresh(bob)

        await publish(alice, swarm.project, swarm.announcement({"ffn1": {1}}), before=both)

        assert await directory.refresh(bob) == {"ffn0"}
        assert (directory.layer("ffn0").num_alive, directory.layer("ffn1").num_alive) == (0, 1)


async def test_a_node_that_serves_nothing_is_known_under_its_own_key_alone(swarm):
    async with peers(swarm.alice, swarm.bob) as (alice, bob):
        assert await publish(alice, swarm.project, swarm.announcement({})) == 2

        (found,) = await bob.find_slots([SlotAsk(node_key("digits", swarm.alice.public_key))])
        assert [Announcement.from_bytes(record.value).claims for record in found.records] == [()]


async def test_a_clean_stop_without_any_peer_raises_nothing(swarm):
    async with DhtNode(swarm.alice, client_only=True) as alice:
        await withdraw(alice, swarm.project, swarm.announcement({"ffn0": {0}}))


async def test_a_project_is_fetched_as_it_was_published_with_its_coordinator_s_key(swarm):
    async with peers(swarm.alice, swarm.bob) as (coordinator, node):
        assert await publish_project(coordinator, swarm.project) == 2

        assert await fetch_project(node, "digits") == (swarm.project, swarm.alice.public_key)
        assert await fetch_project(node, "digits", swarm.alice.public_key) == (swarm.project, swarm.alice.public_key)


async def test_a_project_nobody_publishes_is_unknown_and_so_is_one_of_another_coordinator(swarm):
    async with peers(swarm.alice, swarm.bob) as (coordinator, node):
        await publish_project(coordinator, swarm.project)

        with pytest.raises(UnknownProject, match="1 peers"):
            await fetch_project(node, "other")
        with pytest.raises(UnknownProject, match=swarm.bob.public_key.hex()):
            await fetch_project(node, "digits", swarm.bob.public_key)


async def test_of_two_coordinators_with_one_project_id_the_reader_must_name_the_key(swarm):
    async with peers(swarm.alice, swarm.bob) as (alice, bob):
        await publish_project(alice, swarm.project)
        await publish_project(bob, ProjectRecord(id="digits", title="a squatter"))

        with pytest.raises(AmbiguousProject, match=swarm.alice.public_key.hex()):
            await fetch_project(bob, "digits")
        assert (await fetch_project(bob, "digits", swarm.alice.public_key))[0] == swarm.project


@pytest.mark.parametrize(
    "value",
    [
        b"garbage",
        zlib.compress(b"garbage"),
        zlib.compress(bytes(4_000_000)),
        zlib.compress(ProjectRecord(id="digits").to_bytes())[:-1],
        zlib.compress(ProjectRecord(id="other").to_bytes()),
        zlib.compress(ProjectRecord(id="digits", title="????").to_bytes().replace(b"????", b"\xff" * 4)),
    ],
)
async def test_what_is_no_project_record_is_ignored(swarm, value):
    async with peers(swarm.alice, swarm.bob) as (alice, bob):
        await publish_project(alice, swarm.project)
        await bob.store(project_key("digits"), value, 60)

        assert await fetch_project(bob, "digits") == (swarm.project, swarm.alice.public_key)


async def test_a_large_project_of_like_layers_fits_and_one_that_does_not_is_refused_with_words(swarm):
    layers = tuple(LayerSpec(prefix=f"ffn{number}", grid=(64, 64)) for number in range(256))
    async with peers(swarm.alice) as (alice,):
        assert await publish_project(alice, ProjectRecord(id="digits", layers=layers)) == 1

        noise = "".join(chr(0x4E00 + byte * 16 + number % 16) for number, byte in enumerate(os.urandom(4_000)))
        with pytest.raises(RecordRefused, match="shorten its description"):
            await publish_project(alice, ProjectRecord(id="digits", layers=layers, description=noise))


def test_when_a_third_of_all_peers_die_at_once_every_reader_still_finds_every_living_host():
    """Also before anybody has renewed anything: of the few holders of a key enough are left."""
    network = SimulatedNetwork(one_way_s=0.05, loss=0.05, seed=11)
    project = ProjectRecord(id="digits", layers=(LayerSpec(prefix="ffn0", grid=(8, 8)),))

    async def main() -> None:
        async with SimulatedDht(network) as dht:
            peers = await dht.grow(150, slot_rule=AnnouncementSlots())
            for number, host in enumerate(peers[:16]):
                announcement = Announcement(
                    project="digits",
                    name=f"host-{number}",
                    endpoints=("tcp://127.0.0.1:1",),
                    state="online",
                    claims=(Claim("ffn0", ((4 * number, 4 * number + 4),), 1),),
                    issued_ms=0,
                )
                await publish(host, project, announcement)
            for gone in peers[20:70]:
                await dht.kill(gone)
            for reader in peers[-20:]:
                directory = Directory(project, reader.clock)
                await directory.refresh(reader)
                assert directory.layer("ffn0").num_alive == 64

    run_in_virtual_time(main(), network)
