"""A swarm on a virtual clock: the trainer's real client on one side, virtual nodes on the other, no sockets between.

`VirtualSwarm(project, shares, delays=..., failed_share=...)` has a real `Swarm` as `swarm`: layers, gates, mixture,
quorum and fan-out are the library's. Its exchanges hand messages to nodes of this process, after delays that pass on
VirtualThreads' clock; whoever calls an expert must be one of those threads.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from experiments.virtual_nodes import Frames, Sent, VirtualNode, tensors_of
from experiments.virtual_threads import VirtualThread, VirtualThreads
from learning_at_home.client.fanout import CallContext
from learning_at_home.client.stats import CallStats
from learning_at_home.client.swarm import Swarm
from learning_at_home.client.tracing import Tracing
from learning_at_home.clock import Clock
from learning_at_home.directory.directory import Directory
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.identity import Identity
from learning_at_home.peer_address import PeerAddress
from learning_at_home.project import ProjectRecord
from learning_at_home.tensors.frames import to_frames
from learning_at_home.transport.calls import Answer
from learning_at_home.transport.connections import Connections, Exchange
from learning_at_home.transport.link import Link
from learning_at_home.transport.links import Links
from learning_at_home.wire.framing import take_small
from learning_at_home.wire.messages import Reply, Request, Work
from node_agent.runtime.admission import unpack
from node_agent.runtime.computation import compute

TRAINER_SEED = b"\xff" * 32  # of the one key with which all trainers call


@dataclass(slots=True)
class Delays:
    """How long a message and its answer take together, half there and half back: exponential, by a seed."""

    mean_s: float
    seed: int
    drawn: int = 0
    total_s: float = 0.0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    _random: random.Random = None  # type: ignore[assignment]

    def draw(self) -> float:
        if not self.mean_s:
            return 0.0
        delay_s = self._random.expovariate(1 / self.mean_s)
        self.drawn += 1
        self.total_s += delay_s
        return delay_s


class VirtualSwarm:
    """One run's swarm. Its nodes' keys follow from their numbers, so that runs of one seed are the same."""

    def __init__(
        self,
        threads: VirtualThreads,
        project: ProjectRecord,
        shares: Sequence[Sequence[str]],
        *,
        delays: Delays,
        failed_share: float = 0.0,
        batch_s: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.threads = threads
        self.project = project
        self.delays = delays
        self._failing = random.Random(f"{seed} fails")
        self._failed_share = failed_share
        self._is_calm = False
        self._way_back: dict[int, tuple[VirtualExchange, float]] = {}  # by call id: whose, and after how long
        me = Identity(TRAINER_SEED)
        directory = Directory(project, threads)
        self.by_key: dict[bytes, VirtualNode] = {}
        for number, share in enumerate(shares):
            node = VirtualNode(
                threads,
                project,
                [ExpertUid.parse(uid) for uid in share],
                number,
                batch_s=batch_s,
                fails=self._fails,
                deliver=self._deliver,
            )
            self.by_key[node.identity.public_key] = node
            directory.feed(node.announcement())
        connections = Connections(me, threads)
        connections.make_exchanges(partial(VirtualExchange, self))
        calls = CallContext(project.id, connections, directory, CallStats(), threads, Tracing(threads))
        self.swarm = Swarm(project, calls, me)

    @property
    def nodes(self) -> list[VirtualNode]:
        return list(self.by_key.values())

    @contextmanager
    def calm(self) -> Iterator[None]:
        """For evaluations: forwards are answered at this very moment, without delay, failure or queue."""
        self._is_calm = True
        try:
            yield
        finally:
            self._is_calm = False

    def post(self, exchange: VirtualExchange, peer: PeerAddress, request: Request, frames: Frames) -> None:
        """Send a message on its way."""
        node = self.by_key[peer.public_key]
        if self._is_calm:
            exchange.take(peer, _answered_now(node, request, frames))
            return
        half_s = self.delays.draw() / 2
        for work in request.work:
            self._way_back[work.call_id] = exchange, half_s
        caller = self.swarm.identity.public_key
        self.threads.plan(
            self.threads.monotonic_s() + half_s, lambda: node.receive(caller, request, frames)
        )  # fmt: skip

    def _fails(self, work: Work) -> bool:
        return self._failing.random() < self._failed_share

    def _deliver(self, ready: Sequence[Sent]) -> None:
        """Answers that were ready at one moment; those of one message travel together."""
        by_message: dict[tuple[int, float], tuple[VirtualExchange, list[Sent]]] = {}
        for sent in ready:
            exchange, half_s = self._way_back.pop(sent.ticket.call_id)
            by_message.setdefault((id(exchange), half_s), (exchange, []))[1].append(sent)
        for (_, half_s), (exchange, answers) in by_message.items():
            self.threads.plan(self.threads.monotonic_s() + half_s, _arrival(exchange, answers))


def _arrival(exchange: VirtualExchange, answers: list[Sent]) -> Callable[[], None]:
    return lambda: exchange.arrive(answers)


def _answered_now(node: VirtualNode, request: Request, frames: Frames) -> list[tuple[Reply, Frames]]:
    """Forwards of a message, computed."""
    groups = tensors_of(request, frames)
    answers = []
    for work, of_work in zip(request.work, groups, strict=True):
        expert = node.experts.find(work.uid)
        (outcome,) = compute(expert, work.operation, [unpack(expert, work, of_work)])
        if isinstance(outcome, Exception):
            raise outcome
        assert isinstance(outcome, Tensor), "the layer has no schema"
        spec, sent = to_frames(outcome.clone())
        data, sent = take_small(sent)
        answers.append((Reply(work.call_id, (spec,), 0, 0, expert.updates, 0.0, data=data), sent))
    return answers


class VirtualExchange(Exchange):
    """One round of calls, by one of the virtual threads."""

    def __init__(
        self, swarm: VirtualSwarm, connections: Connections, links: Links, ids: Iterator[int], clock: Clock
    ) -> None:
        super().__init__(connections, links, ids, clock)
        self._swarm = swarm
        self._threads = swarm.threads
        self._waiting: VirtualThread | None = None

    def next_answer(self, until: float) -> Answer | None:
        """As elsewhere; when nothing is pending time passes here, since it would not in the caller's sleep."""
        if not self.pending:
            self._wait(until - self._threads.monotonic_s())
        return super().next_answer(until)

    def take(self, peer: PeerAddress, answers: Sequence[tuple[Reply, Frames]]) -> None:
        """Replies that are here already."""
        for reply, frames in answers:
            self._table.replied(peer, reply, frames, self._threads.monotonic_s())

    def arrive(self, answers: Sequence[Sent]) -> None:
        """Answers have come, perhaps to a round that is over: then they are late, as elsewhere."""
        now = self._threads.monotonic_s()
        for sent in answers:
            call = self._table.pending.get(sent.ticket.call_id)
            if call is None or call.peer is None:
                self._table.late += 1
            elif isinstance(sent.message, Reply):
                self._table.replied(call.peer, sent.message, sent.frames, now)
            else:
                self._table.failed(call.peer, sent.message, now)
        if self._waiting is not None and self._table.answers:
            self._waiting.wake()

    def _link(self, peer: PeerAddress, now: float) -> Link:
        return _Way(self._swarm, self, peer)  # type: ignore[return-value]  # to send a message is all that is asked

    def _wait(self, timeout_s: float) -> bool:
        if timeout_s <= 0:
            return False
        self._waiting = self._threads.current()
        with self.aside:
            self._waiting.wait(self._threads.monotonic_s() + timeout_s)
        self._waiting = None
        return bool(self._table.answers)


@dataclass(frozen=True, slots=True)
class _Way:
    """To one node."""

    swarm: VirtualSwarm
    exchange: VirtualExchange
    peer: PeerAddress

    def send(self, request: Request, frames: Frames) -> None:
        self.swarm.post(self.exchange, self.peer, request, frames)
