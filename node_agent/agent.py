"""One volunteer's node, put together. Composition only: what each part does, it does in its own file.

Async; the experts run in the two threads of the Host. When a thread or a task dies, `run` raises the cause: a node that
cannot serve ends, it never stays as a shell of itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from learning_at_home.clock import SystemClock
from learning_at_home.coordinator_messages import Hardware, NodeState, NodeTelemetry
from learning_at_home.data_folders import data_folder
from learning_at_home.dht.node import DhtNode
from learning_at_home.directory.directory import Directory
from learning_at_home.directory.slot_rule import AnnouncementSlots
from learning_at_home.errors import LearningAtHomeError
from learning_at_home.identity import Identity
from learning_at_home.peer_address import PeerAddress
from learning_at_home.peer_folder import open_peer_folder
from learning_at_home.project import ProjectRecord
from node_agent.addresses import announced_host, endpoint, numeric
from node_agent.announcer import Announcer
from node_agent.config import NodeConfig
from node_agent.device_gauges import DeviceGauges
from node_agent.devices import find_device
from node_agent.experts.hosted import HostedExperts
from node_agent.joining import Coordinator, ask_the_way, choose_experts, find_project
from node_agent.reports import node_telemetry
from node_agent.runtime.batcher import Limits
from node_agent.runtime.host import Host, HostOptions
from node_agent.telemetry import TelemetryClient
from node_agent.tensorboard import WRITE_INTERVAL_S, HealthWriter

log = logging.getLogger(__name__)
told = logging.getLogger("node_agent.told")  # what the person at the terminal should read, one sentence per line

SERVING_LINE = "the swarm knows of this node and can send it work"
WATCH_INTERVAL_S = 0.25  # how soon a dead thread ends the process
SWEEP_INTERVAL_S = 5.0
NOTICE_S = 1.0  # after withdrawing, what still arrives is served for so long at most
QUIET_S = 0.3  # ... or until nothing arrived for this long: longer than most steps of a trainer
LEAVE_TIMEOUT_S = 3.5  # withdrawing, notice and the queue together; what then still waits is refused


class NodeFailed(Exception):
    """A part without which the node cannot serve has ended; the cause is chained."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What runs while the node serves."""

    project: ProjectRecord
    host: Host
    address: PeerAddress  # of this node
    announcer: Announcer
    gauges: DeviceGauges
    telemetry: TelemetryClient | None


class Agent:
    """A node from `run` until `stop`. Everything but `run` may be used from its event loop only."""

    def __init__(self, config: NodeConfig, clock: SystemClock | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.state: NodeState = "joining"
        self.serving = asyncio.Event()  # set once the swarm knows of it
        self.parts: Parts | None = None
        self._started_s = time.time()
        self._stopping = asyncio.Event()
        self._abruptly = False
        self._task: asyncio.Task[None] | None = None

    def stop(self, *, abruptly: bool = False) -> None:
        """Leave: cleanly, or, when told so or told twice, without finishing or withdrawing anything."""
        self._abruptly = abruptly or self._stopping.is_set()
        self._stopping.set()
        waits_for_nothing = self.state == "joining" or (self._abruptly and self.state == "draining")
        if waits_for_nothing and self._task is not None:
            self._task.cancel()

    async def run(self) -> None:
        """Serve until stopped. Raises ConfigError and NetworkErrors while joining, NodeFailed later."""
        self._task = asyncio.current_task()
        try:
            folder = self.config.data_dir or data_folder() / "node"
            with open_peer_folder(folder, "node") as identity:
                await self._join_and_serve(identity, folder)
        except asyncio.CancelledError:
            if not self._stopping.is_set():
                raise
        finally:
            self.state = "offline"

    async def _join_and_serve(self, identity: Identity, folder: Path) -> None:
        config = self.config
        device = await asyncio.to_thread(find_device, config.device)
        name = config.name or identity.name
        invitation = await ask_the_way(config, self.clock)
        dht_node = DhtNode(
            identity,
            config.host,
            config.dht_port,
            clock=self.clock,
            bootstrap=invitation.bootstrap,
            slot_rule=AnnouncementSlots(),
            peer_cache=folder / "node.peers.json",
        )
        async with dht_node as dht:
            project = await find_project(config, invitation, dht)
            told.info("joined project %s%s", project.id, f" ({project.title})" if project.title else "")
            directory = Directory(project, self.clock)
            uids, fit = await choose_experts(config, project, directory, dht, device)
            told.info("hosting %d experts: %s", len(uids), fit)
            started = time.monotonic()
            experts = await asyncio.to_thread(
                HostedExperts.create, uids, project, device, config.grouping, fit.free_bytes - fit.needed_bytes
            )
            log.info("made %d experts on %s in %.1f s", len(experts), device, time.monotonic() - started)
            host = Host(identity, project, experts, self.clock, host_options(config, device))
            port = host.start()
            try:
                your_address = invitation.coordinator.your_address if invitation.coordinator else None
                reachable_at = config.announce_host or announced_host(config.host, your_address, invitation.bootstrap)
                reached_by = endpoint(await numeric(reachable_at), config.announce_port or port, config.unencrypted)
                address = PeerAddress(identity.public_key, (reached_by,), name)
                told.info("reachable at %s, name %s; DHT port %d", address.endpoints[0], name, dht.port)
                announcer = Announcer(
                    dht,
                    directory,
                    experts,
                    self.clock,
                    name=name,
                    endpoints=address.endpoints,
                    load_ms=lambda: host.device_thread.load_s() * 1e3,
                    on_change=self._changed,
                )
                gauges = await asyncio.to_thread(DeviceGauges, device)
                hardware = await asyncio.to_thread(gauges.hardware)
                telemetry = self._telemetry_client(invitation.coordinator, project, identity, name, hardware)
                self.parts = Parts(project, host, address, announcer, gauges, telemetry)
                await self._serve(self.parts)
            finally:
                await asyncio.to_thread(host.stop)

    async def _serve(self, parts: Parts) -> None:
        """Run all tasks until told to stop, then leave."""
        self.state = "online"
        try:
            async with asyncio.TaskGroup() as tasks:
                announcing = tasks.create_task(parts.announcer.run())
                running = [announcing, tasks.create_task(self._watch(parts.host))]
                if parts.telemetry is not None:
                    running.append(tasks.create_task(parts.telemetry.run()))
                if self.config.tensorboard is not None:
                    running.append(tasks.create_task(self._write_tensorboard(parts)))
                await self._stopping.wait()
                if not self._abruptly:
                    await self._leave(parts, announcing)
                for task in running:
                    task.cancel()
        except ExceptionGroup as group:
            cause = group.exceptions[0]
            raise cause if isinstance(cause, NodeFailed | LearningAtHomeError) else NodeFailed(str(cause)) from cause
        finally:
            await asyncio.to_thread(parts.gauges.close)

    async def _leave(self, parts: Parts, announcing: asyncio.Task[None]) -> None:
        """Withdraw, serve what trainers who do not know yet still send, take nothing new, finish what is queued."""
        deadline = self.clock.monotonic_s() + LEAVE_TIMEOUT_S
        self.state = "draining"
        told.info("leaving: finishing the work that is queued")
        if parts.telemetry is not None:
            parts.telemetry.leave()
        announcing.cancel()
        await asyncio.wait({announcing})  # else it could announce again what is withdrawn
        await parts.announcer.withdraw()
        await self._wait_until_quiet(parts.host)
        finished = await asyncio.to_thread(parts.host.drain, max(0.0, deadline - self.clock.monotonic_s()))
        if parts.telemetry is not None:
            await parts.telemetry.send_last_word()
        told.info("left the swarm%s", "" if finished else "; some queued work was refused")

    async def _wait_until_quiet(self, host: Host) -> None:
        """Until no work came for QUIET_S, but NOTICE_S at most. Returns at once when none came lately."""
        until = self.clock.monotonic_s() + NOTICE_S
        while True:
            rest_s = min(until, host.last_work_s + QUIET_S) - self.clock.monotonic_s()
            if rest_s <= 0:
                return
            await asyncio.sleep(rest_s)

    async def _watch(self, host: Host) -> None:
        """Say when the first rows were served; raise when a thread has died."""
        has_served = False
        next_sweep = 0.0
        while True:
            if failure := host.failure():
                raise NodeFailed(f"this node can no longer serve: {failure}") from failure
            if not has_served and host.statistics.rows:
                has_served = True
                told.info("first rows served")
            if (now := self.clock.monotonic_s()) >= next_sweep:
                next_sweep = now + SWEEP_INTERVAL_S
                await asyncio.to_thread(host.sweep)
            await asyncio.sleep(WATCH_INTERVAL_S)

    async def _write_tensorboard(self, parts: Parts) -> None:
        assert self.config.tensorboard is not None
        writer = await asyncio.to_thread(HealthWriter, self.config.tensorboard, parts.address.name)
        try:
            while True:
                telemetry = await self._snapshot(parts)
                await asyncio.to_thread(writer.write, telemetry, time.time())
                await asyncio.sleep(WRITE_INTERVAL_S)
        finally:
            await asyncio.to_thread(writer.close)

    def _telemetry_client(
        self,
        coordinator: Coordinator | None,
        project: ProjectRecord,
        identity: Identity,
        name: str,
        hardware: Hardware,
    ) -> TelemetryClient | None:
        if coordinator is None:
            return None

        async def snapshot() -> NodeTelemetry:
            assert self.parts is not None
            return await self._snapshot(self.parts)

        told.info("watch it at %s", coordinator.dashboard_url)
        return TelemetryClient(
            coordinator.root_url, project.id, coordinator.public_key, identity, name, hardware, snapshot
        )

    async def _snapshot(self, parts: Parts) -> NodeTelemetry:
        device = await asyncio.to_thread(parts.gauges.read)
        state: NodeState = "joining" if self.state == "online" and not self.serving.is_set() else self.state
        now = self.clock.monotonic_s()
        return node_telemetry(parts.host, parts.project, started_s=self._started_s, state=state, device=device, now=now)

    def _changed(self) -> None:
        """The announcer announced or yielded something: tell the coordinator now."""
        if self.parts is None:
            return
        if self.parts.announcer.announced.is_set() and not self.serving.is_set():
            self.serving.set()
            told.info(SERVING_LINE)
        if self.parts.telemetry is not None:
            self.parts.telemetry.send_soon()


def host_options(config: NodeConfig, device: torch.device) -> HostOptions:
    """The part of the configuration that concerns listening and computing."""
    return HostOptions(
        host=config.host,
        port=config.port,
        device=device,
        num_threads=config.threads,
        unencrypted=config.unencrypted,
        max_rows=config.max_rows,
        limits=Limits(batch_rows=config.max_rows),  # what the memory check counted with
    )
