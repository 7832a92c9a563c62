"""What the coordinator's tests share: a project, announcements, telemetry, eyes without a network, a server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import URL, create_engine
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from backend.app import create_app
from backend.cli import Server, server_config
from backend.coordinator import Coordinator, run_coordinator
from backend.database import upgrade
from backend.live.eyes import Probe
from backend.live.swarm import ProjectSwarm, SeenAnnouncement
from backend.settings import DATABASE_FILE, Settings
from learning_at_home.clock import SystemClock
from learning_at_home.coordinator_messages import (
    SIGNING_PURPOSE,
    ExpertTelemetry,
    Hardware,
    Introduction,
    NodeState,
    NodeTelemetry,
    Report,
    encode,
    introduction_bytes,
)
from learning_at_home.dht.records import Record
from learning_at_home.directory.announcement import Announcement, Claim
from learning_at_home.identity import Identity
from learning_at_home.project import LayerSpec, ProjectRecord

NOW = 1_800_000_000.0
DIGITS = ProjectRecord(
    id="digits",
    title="Digits",
    layers=(LayerSpec(prefix="ffn0", grid=(4, 4)), LayerSpec(prefix="ffn1", grid=(4, 4))),
)
ALICE, BOB, CAROL = (Identity(bytes([number]) * 32) for number in (1, 2, 3))
DEADLINE_S = 10.0


def new_swarm(record: ProjectRecord = DIGITS) -> ProjectSwarm:
    return ProjectSwarm(record, itertools.count(1).__next__, own_address="127.0.0.1")


def announced(
    identity: Identity,
    prefix: str = "ffn0",
    first: int = 0,
    end: int = 4,
    *,
    at_s: float = NOW,
    life_s: float = 60.0,
    claimed_s: float = NOW - 100,
    state: Any = "online",
) -> SeenAnnouncement:
    """An announcement of cells first..end of one layer, issued at `at_s`."""
    announcement = Announcement(
        project="digits",
        name=identity.name,
        endpoints=("tcp://127.0.0.1:1",),
        state=state,
        claims=(Claim(prefix, ((first, end),), int(claimed_s * 1000)),),
        issued_ms=int(at_s * 1000),
        agent="test/1",
    )
    return SeenAnnouncement(identity.public_key, announcement, at_s + life_s)


def expert(cell: int = 0, prefix: str = "ffn0", **counts: Any) -> ExpertTelemetry:
    values: dict[str, Any] = {
        "rows_forward": 0, "rows_backward": 0, "updates": 0, "calls": 0, "failures": 0,
        "p50_ms": None, "p95_ms": None, "update_age_s": None, "flop": 0.0,
    }  # fmt: skip
    return ExpertTelemetry(prefix=prefix, cell=cell, **(values | counts))


def telemetry(
    *experts: ExpertTelemetry,
    state: NodeState = "online",
    started_s: float = NOW - 10,
    staleness: tuple[int, int] | tuple[None, None] = (None, None),
) -> NodeTelemetry:
    return NodeTelemetry(
        started_s=started_s, state=state, experts=experts, queue_rows=0, refused=0, p50_ms=2.0, p95_ms=5.0,
        staleness_p50=staleness[0], staleness_max=staleness[1],
    )  # fmt: skip


def report(step: int, run: str = "first", **metrics: float) -> Report:
    return Report(run=run, step=step, metrics=metrics)


def introduce(swarm: ProjectSwarm, identity: Identity, now: float) -> Any:
    return swarm.node_introduced(identity.public_key, identity.name, "test/1", Hardware(), now)


def serving_swarm(now: float = NOW) -> ProjectSwarm:
    """Alice serves cells 0 to 3 of ffn0 and has answered a probe."""
    swarm = new_swarm()
    node = introduce(swarm, ALICE, now)
    swarm.node_told(node, telemetry(*(expert(cell) for cell in range(4))), now)
    swarm.directory_seen([announced(ALICE, at_s=now)], now)
    answer_probes(swarm, now)
    swarm.advance(now)
    return swarm


def answer_probes(swarm: ProjectSwarm, now: float, *, answered: bool = True, hosts_it: bool = True) -> int:
    """Let all probes that are due end so; how many there were."""
    targets = swarm.due_probes(now, lambda cells: cells[0])
    for target in targets:
        swarm.probed(target.node, target.cell, now, answered=answered, hosts_it=hosts_it, jitter=0.0)
    return len(targets)


def healths(swarm: ProjectSwarm, prefix: str = "ffn0") -> dict[int, str]:
    return {cell: memory.health for (each, cell), memory in sorted(swarm.cells.items()) if each == prefix}


@dataclass
class FakeEyes:
    """A directory that holds what a test puts there, and experts that answer unless they are told not to."""

    announcements: list[SeenAnnouncement] = field(default_factory=list)
    dead: set[bytes] = field(default_factory=set)
    published: list[ProjectRecord] = field(default_factory=list)
    found: list[Record] = field(default_factory=list)
    dht_port: int = 4_711

    async def look(self, record: ProjectRecord) -> list[SeenAnnouncement]:
        return [each for each in self.announcements if each.announcement.project == record.id]

    def records(self, project_id: str) -> list[Record]:
        return self.found

    async def publish(self, record: ProjectRecord) -> int:
        self.published.append(record)
        return 1

    async def run_probes(self, probes: Sequence[Probe]) -> None:
        for probe in probes:
            probe.finished(probe.peer.public_key not in self.dead, True)


@dataclass
class Served:
    """A coordinator behind a real server on a port of this machine."""

    coordinator: Coordinator
    eyes: FakeEyes
    port: int
    http: httpx.AsyncClient

    def websocket(self, path: str, **options: Any) -> connect:
        url = f"ws://127.0.0.1:{self.port}/api/v1/projects/{path}"
        return connect(url, proxy=None, open_timeout=DEADLINE_S, **options)

    async def introduced(
        self, websocket: ClientConnection, identity: Identity, role: Any = "node", project: str = "digits"
    ) -> dict[str, Any]:
        """Answer the challenge; the coordinator's answer to that."""
        challenge = json.loads(await websocket.recv())
        await websocket.send(encode(introduction(challenge, identity, role, project)))
        answer: dict[str, Any] = json.loads(await websocket.recv())
        return answer

    @property
    def swarm(self) -> ProjectSwarm:
        return self.coordinator.projects["digits"].swarm


def introduction(
    challenge: dict[str, Any], identity: Identity, role: Any = "node", project: str = "digits"
) -> Introduction:
    signed = introduction_bytes(challenge["nonce"], project, role, challenge["coordinator_public_key"])
    return Introduction(
        role=role,
        public_key=identity.public_key.hex(),
        signature=identity.sign(SIGNING_PURPOSE, signed).hex(),
        name=identity.name,
        agent="test/1",
        hardware=Hardware(device="cpu", cpus=2),
    )


def settings(folder: Path, **options: Any) -> Settings:
    return Settings(data_dir=folder, **({"from_flags": (DIGITS,)} | options))


@cache
def migrated_database() -> bytes:
    """An empty database with all tables, made once: migrations take longer than most tests."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, DATABASE_FILE)
        engine = create_engine(URL.create("sqlite", database=str(path)))
        with engine.begin() as connection:
            upgrade(connection)
        engine.dispose()
        return path.read_bytes()


@asynccontextmanager
async def serve(folder: Path, eyes: FakeEyes | None = None, **options: Any) -> AsyncIterator[Served]:
    """A coordinator of the project `digits` behind a real server, on port 0."""
    eyes = eyes if eyes is not None else FakeEyes()
    if not (folder / DATABASE_FILE).exists():
        folder.mkdir(exist_ok=True)
        (folder / DATABASE_FILE).write_bytes(migrated_database())
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    async with run_coordinator(settings(folder, port=port, **options), SystemClock(), eyes) as coordinator:
        server = Server(server_config(create_app(coordinator)))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve(sockets=[listener]))
            base = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=base, trust_env=False, verify=False, timeout=DEADLINE_S) as http:
                try:
                    yield Served(coordinator, eyes, port, http)
                finally:
                    coordinator.stop()
                    server.should_exit = True


async def read_to_the_end(websocket: ClientConnection) -> list[Any]:
    """All messages that still come before the other side ends the connection."""
    messages = []
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(DEADLINE_S):
            while True:
                messages.append(await websocket.recv())
    return messages


async def eventually(condition: Any, timeout_s: float = DEADLINE_S) -> None:
    """Return as soon as the condition holds; it is asked again whenever the loop has nothing else to do."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
