"""The telemetry client against a small coordinator that follows the protocol."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from learning_at_home.coordinator_messages import (
    SIGNING_PURPOSE,
    Accepted,
    Challenge,
    DeviceTelemetry,
    Hardware,
    Introduction,
    NodeTelemetry,
    Refused,
    decode_peer,
    encode,
    introduction_bytes,
)
from learning_at_home.identity import Identity, verify
from node_agent.telemetry import LAST_WORD_TIMEOUT_S, TelemetryClient

TIMEOUT_S = 10.0
PATH = "/api/v1/projects/digits/telemetry"


class Coordinator:
    """Bob: challenges, checks the signature, keeps what he is told."""

    def __init__(self) -> None:
        self.identity = Identity.generate()
        self.key = self.identity.public_key.hex()
        self.refusal: Refused | None = None
        self.interval_s = 60.0
        self.introductions: asyncio.Queue[Introduction] = asyncio.Queue()
        self.reports: asyncio.Queue[NodeTelemetry] = asyncio.Queue()
        self.sockets: asyncio.Queue[ServerConnection] = asyncio.Queue()
        self.port = 0

    async def talk(self, socket: ServerConnection) -> None:
        self.sockets.put_nowait(socket)
        assert socket.request is not None
        assert socket.request.path == PATH
        nonce = "ab" * 32
        await socket.send(encode(Challenge(nonce, self.key, 0.0)))
        try:
            introduction = decode_peer(await socket.recv())
        except ConnectionClosed:
            return
        assert isinstance(introduction, Introduction)
        signed = introduction_bytes(nonce, "digits", "node", self.key)
        key = bytes.fromhex(introduction.public_key)
        assert verify(key, SIGNING_PURPOSE, signed, bytes.fromhex(introduction.signature))
        await self.introductions.put(introduction)
        if self.refusal is not None:
            await socket.send(encode(self.refusal))
            return
        await socket.send(encode(Accepted(self.interval_s)))
        async for text in socket:
            report = decode_peer(text)
            assert isinstance(report, NodeTelemetry)
            await self.reports.put(report)


@pytest.fixture
async def coordinator() -> AsyncIterator[Coordinator]:
    coordinator = Coordinator()
    async with serve(coordinator.talk, "127.0.0.1", 0) as server:
        coordinator.port = server.sockets[0].getsockname()[1]
        yield coordinator


class Node:
    """Alice's client, and the state that it reports."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.identity = Identity.generate()
        self.state = "joining"
        root = f"http://127.0.0.1:{coordinator.port}"
        self.client = TelemetryClient(
            root, "digits", coordinator.key, self.identity, "alice", Hardware(cpus=2), self._snapshot
        )

    async def _snapshot(self) -> NodeTelemetry:
        return NodeTelemetry(1.0, self.state, (), 0, 0, None, None, DeviceTelemetry())  # type: ignore[arg-type]


@pytest.fixture
async def node(coordinator: Coordinator) -> AsyncIterator[Node]:
    node = Node(coordinator)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(node.client.run())
        yield node
        running.cancel()


async def test_it_introduces_itself_by_signature_and_reports_at_once(coordinator, node):
    async with asyncio.timeout(TIMEOUT_S):
        introduction = await coordinator.introductions.get()
        report = await coordinator.reports.get()

    assert introduction.role == "node"
    assert introduction.name == "alice"
    assert introduction.public_key == node.identity.public_key.hex()
    assert report.state == "joining"


async def test_a_change_is_reported_before_the_next_interval(coordinator, node):
    async with asyncio.timeout(TIMEOUT_S):
        await coordinator.reports.get()
        node.state = "online"
        node.client.send_soon()

        assert (await coordinator.reports.get()).state == "online"


async def test_it_reports_at_the_interval_that_the_coordinator_asks_for(coordinator, node):
    coordinator.interval_s = 0.1
    async with asyncio.timeout(TIMEOUT_S):
        for _ in range(3):
            await coordinator.reports.get()


async def test_it_comes_back_when_the_connection_is_lost(coordinator, node):
    async with asyncio.timeout(TIMEOUT_S):
        await coordinator.reports.get()
        first = await coordinator.sockets.get()
        first.transport.abort()
        second = await coordinator.sockets.get()
        await coordinator.reports.get()

    assert second is not first


async def test_the_last_word_is_told_before_leaving(coordinator, node):
    async with asyncio.timeout(TIMEOUT_S):
        await coordinator.reports.get()
        node.state = "draining"
        await node.client.send_last_word()

        assert (await coordinator.reports.get()).state == "draining"


async def test_a_refusal_is_logged_with_its_words_and_tried_again(coordinator, node, caplog):
    coordinator.refusal = Refused(503, "no such project here")
    async with asyncio.timeout(TIMEOUT_S):
        await coordinator.introductions.get()
        await coordinator.introductions.get()

    assert "no such project here (from the coordinator); the node goes on serving" in caplog.text


async def test_what_a_refusal_says_cannot_steer_a_terminal(coordinator, node, caplog):
    coordinator.refusal = Refused(503, "no\x1b[2J\nsuch project")
    async with asyncio.timeout(TIMEOUT_S):
        await coordinator.introductions.get()
        await coordinator.introductions.get()

    assert "no?[2J?such project (from the coordinator)" in caplog.text


async def test_another_coordinator_at_the_same_address_is_not_told_anything(coordinator, node, caplog):
    async with asyncio.timeout(TIMEOUT_S):
        await coordinator.reports.get()
        await coordinator.introductions.get()
        coordinator.key = Identity.generate().public_key.hex()
        await (await coordinator.sockets.get()).close()
        await (await coordinator.sockets.get()).wait_closed()
        await coordinator.sockets.get()  # it tries again: the first refusal is over

    assert coordinator.introductions.empty()
    assert "its key has changed" in caplog.text


async def test_the_last_word_without_a_connection_is_nothing():
    coordinator = Coordinator()
    coordinator.port = 9

    await Node(coordinator).client.send_last_word()


async def test_while_leaving_the_state_is_told_at_once_and_a_lost_connection_is_not_made_again(coordinator):
    node = Node(coordinator)
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(node.client.run())  # ends by itself
        await coordinator.reports.get()
        node.state = "draining"
        node.client.leave()
        told = await coordinator.reports.get()
        (await coordinator.sockets.get()).transport.abort()

    assert told.state == "draining"
    assert coordinator.sockets.empty()


async def test_leaving_ends_the_attempts_to_reach_a_coordinator_that_is_gone():
    coordinator = Coordinator()
    coordinator.port = 9
    node = Node(coordinator)
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(node.client.run())  # ends by itself
        await asyncio.sleep(0)
        node.client.leave()


async def test_a_coordinator_that_no_longer_listens_does_not_hold_up_the_last_word(coordinator, node):
    async with asyncio.timeout(TIMEOUT_S):
        await coordinator.reports.get()
        (await coordinator.sockets.get()).transport.pause_reading()
        async with asyncio.timeout(2 * LAST_WORD_TIMEOUT_S + 1):
            await node.client.send_last_word()
