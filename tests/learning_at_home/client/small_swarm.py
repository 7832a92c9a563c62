"""A swarm in one process for the client's tests: real hosts or nodes of any behaviour behind real sockets, no DHT.

The directory is the real one, fed with the nodes' signed announcements.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from learning_at_home.client.fanout import CallContext
from learning_at_home.client.stats import CallStats
from learning_at_home.client.swarm import Swarm
from learning_at_home.client.tracing import Tracing
from learning_at_home.clock import SystemClock
from learning_at_home.dht.records import sign_record
from learning_at_home.directory.announcement import Announcement, Claim, node_key, spans_of
from learning_at_home.directory.directory import Directory
from learning_at_home.errors import LearningAtHomeError
from learning_at_home.identity import Identity
from learning_at_home.project import LayerSpec, OptimizerSpec, ProjectRecord
from learning_at_home.tensors.frames import from_frames, to_frames
from learning_at_home.transport.connections import Connections
from learning_at_home.transport.server import Server, TensorFrame, Ticket
from learning_at_home.wire.messages import Reply, Work
from node_agent.experts.architectures import build_expert
from node_agent.experts.hosted import HostedExperts
from node_agent.runtime.host import Host, HostOptions

FROZEN = OptimizerSpec(name="frozen")
SGD = OptimizerSpec(name="sgd", learning_rate=0.1, clip_norm=None)

# What a wilful node does with one piece of work: the tensor to answer, an error to answer, or None for silence.
Behaviour = Callable[[Work, list[Tensor]], Tensor | LearningAtHomeError | None]


def layer(grid: Sequence[int] = (2, 2), **changes: object) -> LayerSpec:
    """A small float64 layer of `ffn` experts, SGD with rate 0.1."""
    fields: dict[str, object] = {
        "prefix": "ffn0",
        "grid": tuple(grid),
        "architecture": "ffn",
        "hidden_size": 6,
        "dtype": "float64",
        "optimizer": SGD,
        "deadline_s": 5.0,
        "grace_s": 0.3,
    }
    return LayerSpec(**{**fields, **changes})  # type: ignore[arg-type]


def twice(work: Work, tensors: list[Tensor]) -> Tensor:
    """An expert that doubles: forward 2 x, backward 2 times the gradient."""
    return 2 * tensors[-1]


class WilfulNode:
    """A node whose answers are a test's to decide; `seen` has what it was asked."""

    def __init__(self, identity: Identity, project: ProjectRecord, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.seen: list[Work] = []
        self.load_ms = 0.0  # that its answers tell
        self.server = Server(identity, project.id, self, SystemClock(), max_rows=4096, max_bytes=1 << 26)
        self.server.start()

    def on_work(self, ticket: Ticket, work: Work, frames: list[list[TensorFrame]]) -> None:
        self.seen.append(work)
        answer = self.behaviour(work, [from_frames(s, f) for s, f in zip(work.tensors, frames, strict=True)])
        if isinstance(answer, LearningAtHomeError):
            raise answer
        if answer is not None:
            spec, sent = to_frames(answer.contiguous())
            self.server.answer(ticket, Reply(work.call_id, (spec,), 0, 0, 0, self.load_ms), sent)

    def work_here(self) -> bool:
        return False

    def stop(self) -> None:
        self.server.stop()


@dataclass
class SmallSwarm:
    """`add_host(cells)` and `add_wilful(cells, behaviour)` make nodes; `swarm` is what the tests are about."""

    spec: LayerSpec
    project: ProjectRecord = field(init=False)
    swarm: Swarm = field(init=False)
    nodes: list[Host | WilfulNode] = field(default_factory=list)
    identities: list[Identity] = field(default_factory=list)
    _sequence: int = 0

    def __post_init__(self) -> None:
        self.project = ProjectRecord(id="test", layers=(self.spec,))
        clock, me = SystemClock(), Identity.generate()
        directory = Directory(self.project, clock)
        calls = CallContext(self.project.id, Connections(me, clock), directory, CallStats(), clock, Tracing(clock))
        self.swarm = Swarm(self.project, calls, me)

    @property
    def directory(self) -> Directory:
        return self.swarm.calls.directory

    def add_host(self, cells: Sequence[int]) -> Host:
        """A real node with freshly made experts."""
        uids = [self.spec.cells.uid(self.spec.prefix, cell) for cell in cells]
        experts = HostedExperts.create(uids, self.project, torch.device("cpu"))
        identity = Identity.generate()
        host = Host(identity, self.project, experts, SystemClock(), HostOptions())
        self._add(identity, host, host.start(), cells)
        return host

    def add_wilful(self, cells: Sequence[int], behaviour: Behaviour) -> WilfulNode:
        identity = Identity.generate()
        node = WilfulNode(identity, self.project, behaviour)
        self._add(identity, node, node.server.port, cells)
        return node

    def announce(
        self,
        identity: Identity,
        port: int,
        cells: Sequence[int],
        life_s: float = 60.0,
        state: Literal["online", "draining"] = "online",
    ) -> None:
        now_ms = int(time.time() * 1000)
        self._sequence += 1
        announcement = Announcement(
            project=self.project.id,
            name=identity.name,
            endpoints=(f"tcp://127.0.0.1:{port}",),
            state=state,
            claims=(Claim(self.spec.prefix, spans_of(cells), now_ms),),
            issued_ms=now_ms,
        )
        record = sign_record(
            identity,
            node_key(self.project.id, identity.public_key),
            announcement.to_bytes(),
            sequence=now_ms + self._sequence,
            expires_ms=now_ms + int(life_s * 1000),
        )
        self.directory.feed(record)

    def local(self, cell: int) -> torch.nn.Module:
        """The same expert as a local module, with its initial weights."""
        return build_expert(self.spec, self.project.id, self.spec.cells.uid(self.spec.prefix, cell))

    def close(self) -> None:
        self.swarm.close()
        for node in self.nodes:
            node.stop()

    def _add(self, identity: Identity, node: Host | WilfulNode, port: int, cells: Sequence[int]) -> None:
        self.nodes.append(node)
        self.identities.append(identity)
        self.announce(identity, port, cells)
