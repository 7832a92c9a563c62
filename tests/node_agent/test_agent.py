"""Whole nodes: they join, yield to older claims, drain, and end with their parts."""

import asyncio
import threading
import time
from pathlib import Path

import msgspec
import pytest
import torch
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from learning_at_home.clock import SystemClock
from learning_at_home.coordinator_messages import Accepted, Challenge, encode
from learning_at_home.dht.node import DhtNode
from learning_at_home.directory.directory import Directory
from learning_at_home.directory.slot_rule import AnnouncementSlots
from learning_at_home.errors import (
    ConfigError,
    ExpertFailed,
    LearningAtHomeError,
    NodeDraining,
    PeerUnreachable,
    UnknownExpert,
)
from learning_at_home.identity import Identity
from learning_at_home.project import ProjectAccess, ProjectRecord
from node_agent.agent import Agent, NodeFailed
from node_agent.announcer import Announcer
from node_agent.config import NodeConfig
from node_agent.runtime.host import Host
from node_agent.testing.project_files import project_toml

TIMEOUT_S = 20.0
HOST = "127.0.0.1"


@pytest.fixture
def project_file(tmp_path: Path, project: ProjectRecord) -> Path:
    path = tmp_path / "project.toml"
    path.write_text(project_toml(project), "utf-8")
    return path


@pytest.fixture
async def dht():
    async with DhtNode(Identity.generate(), HOST, 0, slot_rule=AnnouncementSlots()) as node:
        yield node


@pytest.fixture
def agent_of(tmp_path: Path, project_file: Path, dht: DhtNode):
    """`agent_of("alice", "ffn0.0.0", ...)`: an agent that joins the DHT of this test."""

    def make(name: str, *experts: str) -> Agent:
        config = NodeConfig(
            project_file=project_file,
            bootstrap=(dht.address,),
            experts=experts,
            name=name,
            data_dir=tmp_path / name,
            host=HOST,
        )
        return Agent(config.check())

    return make


async def directory_of(dht: DhtNode, project: ProjectRecord) -> Directory:
    directory = Directory(project, dht.clock)
    await directory.refresh(dht)
    return directory


@pytest.mark.slow
async def test_a_node_announces_its_experts_and_withdraws_them_when_it_leaves(agent_of, dht, project):
    agent = agent_of("alice", "ffn0.0.[0:2]")
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(agent.run())
        await agent.serving.wait()
        while_serving = await directory_of(dht, project)
        agent.stop()
        await running
        afterwards = await directory_of(dht, project)

    names = [holder.name if holder else None for holder in while_serving.layer("ffn0").holders]
    assert names == ["alice", "alice", None, None]
    assert afterwards.layer("ffn0").num_alive == 0
    assert agent.state == "offline"


async def test_of_two_nodes_with_one_cell_the_older_serves_and_the_younger_says_why(agent_of, caller, caplog):
    alice, bob = agent_of("alice", "ffn0.0.0"), agent_of("bob", "ffn0.0.0", "ffn0.1.1")
    x = torch.randn(2, 8, dtype=torch.float64)
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(alice.run())
        await alice.serving.wait()
        tasks.create_task(bob.run())
        await bob.serving.wait()

        older = await asyncio.to_thread(caller.call, alice.parts.address, "ffn0.0.0", "forward", x)
        with pytest.raises(UnknownExpert, match=r"ffn0\.0\.0 is not served by this node: alice"):
            await asyncio.to_thread(caller.call, bob.parts.address, "ffn0.0.0", "forward", x)
        uncontested = await asyncio.to_thread(caller.call, bob.parts.address, "ffn0.1.1", "forward", x)
        telemetry = await bob._snapshot(bob.parts)
        await alice.parts.announcer.look()
        alice_yields = dict(alice.parts.host.experts.yielded)
        alice.stop()
        bob.stop()

    assert older.shape == uncontested.shape == (2, 8)
    assert alice_yields == {}
    assert telemetry.notice.startswith("yielded ffn0.0.0: alice")
    assert [expert.cell for expert in telemetry.experts] == [3]
    assert "ffn0.0.0 is yielded: alice" in caplog.text


@pytest.mark.slow
async def test_a_yielded_cell_is_served_again_when_the_older_claim_has_ended(agent_of, caller):
    alice, bob = agent_of("alice", "ffn0.0.0"), agent_of("bob", "ffn0.0.0")
    x = torch.randn(2, 8, dtype=torch.float64)
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        first = tasks.create_task(alice.run())
        await alice.serving.wait()
        tasks.create_task(bob.run())
        await bob.serving.wait()
        alice.stop()
        await first
        await bob.parts.announcer.look()

        answer = await asyncio.to_thread(caller.call, bob.parts.address, "ffn0.0.0", "forward", x)
        bob.stop()

    assert answer.shape == (2, 8)


async def test_without_named_experts_a_node_takes_what_is_vacant(agent_of, dht, project):
    alice, bob = agent_of("alice", "ffn0.[0:2].0"), agent_of("bob")
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(alice.run())
        await alice.serving.wait()
        tasks.create_task(bob.run())
        await bob.serving.wait()
        directory = await directory_of(dht, project)
        alice.stop()
        bob.stop()

    names = [holder.name if holder else None for holder in directory.layer("ffn0").holders]
    assert names == ["alice", "bob", "alice", "bob"]
    assert directory.layer("mlp0").num_alive == 2


async def test_telemetry_counts_the_work_that_was_done(agent_of, caller):
    agent = agent_of("alice", "ffn0.0.0")
    x = torch.randn(2, 8, dtype=torch.float64)
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(agent.run())
        await agent.serving.wait()
        await asyncio.to_thread(caller.call, agent.parts.address, "ffn0.0.0", "forward", x)
        await asyncio.to_thread(caller.call, agent.parts.address, "ffn0.0.0", "backward", x, x)
        telemetry = await agent._snapshot(agent.parts)
        while telemetry.experts[0].calls < 2:  # a call is counted just after its answer has left
            telemetry = await agent._snapshot(agent.parts)
        agent.stop()

    [expert] = telemetry.experts
    assert telemetry.state == "online"
    assert (expert.prefix, expert.cell) == ("ffn0", 0)
    assert (expert.rows_forward, expert.rows_backward, expert.updates, expert.calls) == (2, 2, 1, 2)
    assert expert.flop == 2 * 4 * agent.parts.host.experts.by_uid["ffn0.0.0"].forward_flop_per_row
    assert (telemetry.staleness_p50, telemetry.staleness_max) == (0, 0)
    assert telemetry.p50_ms is not None
    assert telemetry.device.memory_used_bytes


async def test_a_node_whose_device_thread_dies_ends_with_the_cause(agent_of, caller, monkeypatch, caplog):
    agent = agent_of("alice", "ffn0.0.0")
    monkeypatch.setattr("node_agent.runtime.batch_runner.device_still_works", lambda device: False)
    x = torch.full((1, 8), 1e305, dtype=torch.float64)
    async with asyncio.timeout(TIMEOUT_S):
        running = asyncio.ensure_future(agent.run())
        await agent.serving.wait()
        with pytest.raises(ExpertFailed, match="not finite"):
            await asyncio.to_thread(caller.call, agent.parts.address, "ffn0.0.0", "backward", x, x)
        with pytest.raises(NodeFailed, match=r"can no longer serve: cpu fails since ffn0\.0\.0 ran backward"):
            await running


async def test_two_nodes_cannot_share_a_folder(agent_of):
    alice = agent_of("alice", "ffn0.0.0")
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(alice.run())
        await alice.serving.wait()
        with pytest.raises(ConfigError, match=r"another `lah node` of this machine uses .*--data-dir"):
            await agent_of("alice", "ffn0.0.1").run()
        alice.stop()


async def test_a_node_can_be_stopped_while_it_joins(tmp_path):
    config = NodeConfig(coordinator="http://127.0.0.1:9/p/digits", data_dir=tmp_path).check()
    agent = Agent(config)
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(agent.run())
        await asyncio.sleep(0)
        agent.stop()
        await running

    assert agent.state == "offline"


async def test_a_second_stop_does_not_wait_for_queued_work(agent_of, monkeypatch):
    agent = agent_of("alice", "ffn0.0.0")
    draining, released = threading.Event(), threading.Event()

    def drain(host: Host, timeout_s: float) -> bool:
        draining.set()
        return released.wait(TIMEOUT_S)

    monkeypatch.setattr(Host, "drain", drain)
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(agent.run())
        await agent.serving.wait()
        agent.stop()
        await asyncio.to_thread(draining.wait, TIMEOUT_S)
        agent.stop()
        await running
        was_released = released.is_set()
        released.set()

    assert not was_released
    assert agent.state == "offline"


async def test_what_arrives_before_the_swarm_knows_that_a_node_leaves_is_served(agent_of, caller, monkeypatch):
    agent = agent_of("alice", "ffn0.0.0")
    x = torch.randn(2, 8, dtype=torch.float64)
    served: list[torch.Tensor] = []
    withdraw, send = Announcer.withdraw, caller.call

    async def withdraw_slowly(announcer: Announcer) -> None:
        await withdraw(announcer)
        served.append(await asyncio.to_thread(send, agent.parts.address, "ffn0.0.0", "forward", x))

    monkeypatch.setattr(Announcer, "withdraw", withdraw_slowly)
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(agent.run())
        await agent.serving.wait()
        agent.stop()
        await running

    assert [answer.shape for answer in served] == [(2, 8)]
    assert agent.parts.host.refused == 0


async def test_a_trainer_that_goes_on_sending_does_not_hold_up_a_node_that_leaves(agent_of, caller):
    agent = agent_of("alice", "ffn0.0.0")
    x = torch.randn(2, 8, dtype=torch.float64)

    def call_until_refused() -> LearningAtHomeError:
        while True:
            try:
                caller.call(agent.parts.address, "ffn0.0.0", "forward", x)
            except LearningAtHomeError as error:
                return error

    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(agent.run())
        await agent.serving.wait()
        refusal = tasks.create_task(asyncio.to_thread(call_until_refused))
        agent.stop()
        await running

    assert isinstance(refusal.result(), NodeDraining | PeerUnreachable)


@pytest.mark.slow
async def test_a_node_leaves_in_time_though_coordinator_and_peers_have_fallen_silent(project, tmp_path, dht, caplog):
    """All that a stop could wait for is silent: the coordinator does not read, the DHT's peers are gone."""
    silent, over = asyncio.Event(), asyncio.Event()
    identity = Identity.generate()
    access = ProjectAccess(
        record=project,
        coordinator_public_key=identity.public_key.hex(),
        bootstrap=(dht.address,),
        your_address=HOST,
        wall_s=SystemClock().wall_s(),
        dashboard_url="http://127.0.0.1/p/digits",
    )

    def answer_http(connection: ServerConnection, request: Request) -> Response | None:
        if request.path.endswith("/telemetry"):
            return None
        return Response(200, "OK", Headers({"Content-Type": "application/json"}), msgspec.json.encode(access))

    async def talk(socket: ServerConnection) -> None:
        await socket.send(encode(Challenge("ab" * 32, identity.public_key.hex(), 0.0)))
        await socket.recv()
        await socket.send(encode(Accepted(60.0)))
        await silent.wait()
        socket.transport.pause_reading()
        await over.wait()

    peers = [DhtNode(Identity.generate(), bootstrap=[dht.address], slot_rule=AnnouncementSlots()) for _ in range(3)]
    async with asyncio.timeout(TIMEOUT_S), serve(talk, HOST, 0, process_request=answer_http, close_timeout=0) as server:
        for peer in peers:
            await peer.__aenter__()
        config = NodeConfig(
            coordinator=f"http://{HOST}:{server.sockets[0].getsockname()[1]}/p/digits",
            experts=("ffn0.0.0", "mlp0.0"),
            data_dir=tmp_path / "alice",
            host=HOST,
        )
        agent = Agent(config.check())
        running = asyncio.create_task(agent.run())
        await agent.serving.wait()
        for peer in peers:
            await peer.__aexit__(None, None, None)
        silent.set()
        await asyncio.sleep(0)
        began = time.monotonic()
        agent.stop()
        await running
        took_s = time.monotonic() - began
        over.set()

    print(f"\nleft in {took_s:.2f} s")
    assert took_s < 5.0
    assert agent.state == "offline"
