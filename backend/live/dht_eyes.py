"""The coordinator as a peer: it asks the DHT like everybody else, and calls experts as a trainer would.

Async, with a small pool of threads for the calls (the transport is synchronous); a thread holds many calls at once.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from backend.live.eyes import Probe
from backend.live.swarm import SeenAnnouncement
from backend.settings import Settings
from learning_at_home.clock import Clock
from learning_at_home.dht.node import DhtNode
from learning_at_home.dht.records import Record
from learning_at_home.directory.directory import Directory
from learning_at_home.directory.publisher import publish_project
from learning_at_home.directory.slot_rule import AnnouncementSlots
from learning_at_home.errors import ConfigError, LearningAtHomeError, NetworkError, UnknownExpert, WireError
from learning_at_home.identity import Identity
from learning_at_home.project import ProjectRecord
from learning_at_home.schema import Leaf
from learning_at_home.transport.calls import Answer, Call
from learning_at_home.transport.connections import Connections
from learning_at_home.transport.link import chunk_bytes_of
from learning_at_home.wire.messages import TensorSpec

MAX_THREADS = 8
REFUSAL_TIMEOUT_S = 0.15  # a refusal takes one round trip; no answer in that time proves nothing
STOP_LOOK_S = 0.2  # how long a thread may overlook that we are closing


class DhtEyes:
    """Made by `open_eyes`."""

    def __init__(self, dht: DhtNode, connections: Connections, clock: Clock, threads: ThreadPoolExecutor) -> None:
        self._dht = dht
        self._connections = connections
        self._clock = clock
        self._threads = threads
        self._directories: dict[str, Directory] = {}
        self._closing = threading.Event()

    @property
    def dht_port(self) -> int:
        return self._dht.port

    async def look(self, record: ProjectRecord) -> list[SeenAnnouncement]:
        directory = self._directories.get(record.id)
        if directory is None or directory.project != record:
            directory = self._directories[record.id] = Directory(record, self._clock)
        asked_s = self._clock.monotonic_s()
        await directory.refresh(self._dht)
        directory.prune()
        now = self._clock.monotonic_s()
        answered = any(directory.layer(layer.prefix).age_s(now) <= now - asked_s for layer in record.layers)
        if not answered and not directory.records():  # what this peer holds itself counts as well
            raise NetworkError("no other peer of the DHT answered")
        return [
            SeenAnnouncement(each.public_key, each.announcement, each.expires_ms / 1000)
            for each in directory.all_announcements()
            if each.announcement.project == record.id
        ]

    def records(self, project_id: str) -> Sequence[Record]:
        directory = self._directories.get(project_id)
        return directory.records() if directory is not None else ()

    async def publish(self, record: ProjectRecord) -> int:
        return await publish_project(self._dht, record)

    async def run_probes(self, probes: Sequence[Probe]) -> None:
        """One thread makes all these calls at once; each tells its end as soon as it is known.

        Before an urgent call the port itself is tried: a killed process's machine refuses at once, which ends the probe
        without waiting for its time to pass.
        """
        loop = asyncio.get_running_loop()
        refused = await asyncio.gather(*(_refuses(probe) for probe in probes))
        for probe in [each for each, dead in zip(probes, refused, strict=True) if dead]:
            probe.finished(False, True)
        if waiting := [each for each, dead in zip(probes, refused, strict=True) if not dead]:
            await loop.run_in_executor(self._threads, self._exchange, waiting, loop)

    def close(self) -> None:
        """Let threads end within STOP_LOOK_S."""
        self._closing.set()

    # -- on a thread of the pool

    def _exchange(self, probes: list[Probe], loop: asyncio.AbstractEventLoop) -> None:
        waiting: dict[int, Probe] = {}
        unfinished = list(probes)

        def finish(probe: Probe, answered: bool, hosts_it: bool) -> None:
            unfinished.remove(probe)
            loop.call_soon_threadsafe(probe.finished, answered, hosts_it)

        try:
            with self._connections.exchange() as exchange:
                for probe in probes:
                    deadline = self._clock.monotonic_s() + probe.timeout_s
                    call = zero_row(probe)
                    exchange.send(probe.peer, probe.project_id, [call], deadline)
                    waiting[call.call_id] = probe
                while exchange.pending and not self._closing.is_set():
                    answer = exchange.next_answer(self._clock.monotonic_s() + STOP_LOOK_S)
                    if answer is not None and (found := waiting.pop(answer.call_id, None)) is not None:
                        finish(found, *judge(found, answer))
        except LearningAtHomeError:
            pass  # the connections are closing: what is unfinished is told below
        if not self._closing.is_set():
            for probe in list(unfinished):
                finish(probe, False, True)


async def _refuses(probe: Probe) -> bool:
    """Whether every endpoint of an urgently probed node refuses connections. What else goes wrong is the call's to
    find.
    """
    if not probe.urgent or not probe.peer.endpoints:
        return False
    refused = await asyncio.gather(*(_is_refused(endpoint) for endpoint in probe.peer.endpoints))
    return all(refused)


async def _is_refused(endpoint: str) -> bool:
    parts = urlsplit(endpoint)
    try:
        async with asyncio.timeout(REFUSAL_TIMEOUT_S):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError, ValueError):
        return False
    writer.close()
    return False


def zero_row(probe: Probe) -> Call:
    """A forward call of one row of zeros."""
    specs = _specs_of_a_row(probe.layer.inputs)
    uid = str(probe.layer.cells.uid(probe.layer.prefix, probe.cell))
    chunk_bytes = chunk_bytes_of(probe.peer)
    sizes = [
        min(chunk_bytes, spec.num_bytes - start) for spec in specs for start in range(0, spec.num_bytes, chunk_bytes)
    ]
    return Call(uid, "forward", specs, tuple(bytes(size) for size in sizes))


def _specs_of_a_row(leaves: Sequence[Leaf]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(leaf.dtype, (1, *leaf.shape)) for leaf in leaves)


def judge(probe: Probe, answer: Answer) -> tuple[bool, bool]:
    """Whether the node answered, and whether it hosts the expert. A refusal is an answer; noise is none."""
    if answer.reply is not None:
        return True, answer.reply.tensors == _specs_of_a_row(probe.layer.outputs)
    if isinstance(answer.error, (NetworkError, WireError)):
        return False, True
    return True, not isinstance(answer.error, UnknownExpert)


@asynccontextmanager
async def open_eyes(settings: Settings, identity: Identity, clock: Clock) -> AsyncIterator[DhtEyes]:
    """A DHT peer and a pool of connections, closed at the end. Raises ConfigError when the UDP port is taken."""
    node = DhtNode(
        identity,
        settings.host,
        settings.dht_port,
        clock=clock,
        bootstrap=settings.bootstrap,
        slot_rule=AnnouncementSlots(),
        peer_cache=settings.peer_cache_file,
    )
    try:
        await node.__aenter__()
    except ConfigError as error:
        raise ConfigError(f"{error.message}; choose another port with --dht-port, or 0 for any") from error
    connections = Connections(identity, clock, unencrypted=True)  # a probe has no secrets, and proves little anyway
    threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="probe")
    eyes = DhtEyes(node, connections, clock, threads)
    try:
        yield eyes
    finally:
        eyes.close()
        await asyncio.to_thread(threads.shutdown, wait=True, cancel_futures=True)
        connections.close()
        await node.__aexit__(None, None, None)
