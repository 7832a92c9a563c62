"""A trainer's life in a swarm besides its calls: a peer of the DHT, a fresh directory, the link to the coordinator.

Async inside, on a thread of its own; `start` and `close` are for any thread. Torch-free.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from learning_at_home.client.loop_thread import LoopThread
from learning_at_home.client.reporting import LAST_WORDS_S
from learning_at_home.clock import Clock
from learning_at_home.coordinator_link import CoordinatorLink
from learning_at_home.dht.node import DhtNode
from learning_at_home.directory.beam_search import LineScores
from learning_at_home.directory.directory import Directory
from learning_at_home.directory.keeper import keep_fresh
from learning_at_home.directory.mirror import Mirror
from learning_at_home.directory.publisher import fetch_project
from learning_at_home.errors import BootstrapFailed, LearningAtHomeError
from learning_at_home.identity import Identity
from learning_at_home.project import ProjectRecord

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 3.0
RESTART_PAUSE_S = 1.0  # of the directory's keeper, should it ever fail


@dataclass(frozen=True, slots=True)
class Joined:
    """What joining brought."""

    record: ProjectRecord
    directory: Directory
    mirror: Mirror


@dataclass(slots=True)
class Membership:
    """`project`: the record, or the id under which the DHT holds it. `peer_cache`: see DhtNode."""

    identity: Identity
    clock: Clock
    bootstrap: Sequence[str]
    project: ProjectRecord | str
    coordinator_key: bytes | None = None
    peer_cache: Path | None = None
    link: Callable[[], CoordinatorLink] | None = None  # made on the loop
    _thread: LoopThread | None = None
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _life: concurrent.futures.Future[None] | None = None
    _joined: tuple[DhtNode, Directory] | None = None  # while it lives

    def start(self, timeout_s: float) -> Joined:
        """Join; returns when the directory was asked for the first time. Raises BootstrapFailed, UnknownProject ..."""
        joined: concurrent.futures.Future[Joined] = concurrent.futures.Future()
        self._thread = LoopThread("swarm")
        self._life = self._thread.submit(self._live(joined))
        try:
            return joined.result(timeout_s)
        except TimeoutError as error:
            self.close()
            raise BootstrapFailed(
                f"no directory from {', '.join(self.bootstrap)} within {timeout_s:g} s: "
                "are their UDP ports open to this machine?"
            ) from error
        except BaseException:
            self.close()
            raise

    def explore(self, prefix: str, scores: LineScores, width: int, timeout_s: float) -> None:
        """Have the directory look for the best experts of these rows: see Directory.explore. Waits at most so long."""
        thread, joined = self._thread, self._joined
        if thread is None or joined is None or thread.runs_here:
            return
        dht, directory = joined
        looking = thread.submit(directory.explore(dht, prefix, scores, width))
        try:
            looking.result(timeout_s)
        except TimeoutError:
            looking.cancel()
            log.warning("layer %s: the DHT did not tell the best experts within %.1f s", prefix, timeout_s)

    def close(self) -> None:
        """Leave. May be called twice. Waits a moment for reports that are on their way."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if self._life is not None and not self._life.done():
            thread.submit(self._tell_to_stop())
            concurrent.futures.wait([self._life], timeout=CLOSE_TIMEOUT_S)
        thread.close(CLOSE_TIMEOUT_S)

    async def _tell_to_stop(self) -> None:
        self._stop.set()

    async def _live(self, joined: concurrent.futures.Future[Joined]) -> None:
        try:
            async with DhtNode(
                self.identity,
                "0.0.0.0",  # noqa: S104 - a client answers nobody
                clock=self.clock,
                client_only=True,
                peer_cache=self.peer_cache,
            ) as dht:
                await dht.bootstrap(self.bootstrap, require=True)
                record = self.project
                if isinstance(record, str):
                    record, _ = await fetch_project(dht, record, self.coordinator_key)
                directory = Directory(record, self.clock)
                await directory.refresh(dht)
                mirror = Mirror(directory, self.clock)
                self._joined = dht, directory
                joined.set_result(Joined(record, directory, mirror))
                try:
                    await self._stay(dht, directory, mirror)
                finally:
                    self._joined = None
        except (LearningAtHomeError, OSError) as error:
            if joined.done():
                raise
            joined.set_exception(error)
        except BaseException as error:
            if not joined.done():
                joined.set_exception(error)
            elif not isinstance(error, asyncio.CancelledError):
                log.exception("the swarm's background work ended; experts are still called, discovery is not")
            raise

    async def _stay(self, dht: DhtNode, directory: Directory, mirror: Mirror) -> None:
        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(self._keep_fresh(dht, directory, mirror))]
            link = self.link() if self.link else None
            if link is not None:
                link.mirror = mirror
                background.append(tasks.create_task(link.run()))
            await self._stop.wait()
            if link is not None:
                await link.last_word(LAST_WORDS_S)
            for task in background:
                task.cancel()

    async def _keep_fresh(self, dht: DhtNode, directory: Directory, mirror: Mirror) -> None:
        while True:
            try:
                await keep_fresh(directory, dht, None, self.clock, lambda prefixes: None, is_mirrored=mirror.is_live)
            except Exception:  # the task's outermost edge: without it a trainer would never see a node again
                log.exception("the directory's keeper failed; it starts again")
            await asyncio.sleep(RESTART_PAUSE_S)
