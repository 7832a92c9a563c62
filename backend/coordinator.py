"""One running coordinator: what it holds, and the tasks that keep it true. Composition only. Async."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from backend.database import Database, open_database
from backend.descriptors import max_websockets
from backend.events.repository import EventRepository
from backend.knocks.knocker import Knocker
from backend.live.dht_eyes import open_eyes
from backend.live.eyes import Eyes
from backend.live.mirror import MirrorHub
from backend.live.prober import run_prober
from backend.live.recorder import Recorder
from backend.live.rollups import BEAT_HOURS, HOUR_S
from backend.live.steady_time import SteadyTime
from backend.live.swarm import EVENTS_SHOWN, ProjectSwarm
from backend.live.watcher import Watched, run_looks, run_publishing, run_ticks
from backend.nodes.repository import NodeRepository
from backend.projects.repository import ProjectRepository
from backend.projects.service import write_projects
from backend.runs.repository import RunRepository
from backend.series.repository import RollupRepository
from backend.settings import Settings
from backend.telemetry.sockets import OpenSockets
from learning_at_home.clock import Clock
from learning_at_home.errors import ConfigError, UnknownProject
from learning_at_home.identity import Identity

log = logging.getLogger(__name__)

RESTART_TASK_AFTER_S = 1.0


@dataclass(slots=True)
class Coordinator:
    """What endpoints reach through `request.app.state.coordinator`."""

    settings: Settings
    identity: Identity
    clock: Clock
    time: SteadyTime
    database: Database
    eyes: Eyes
    projects: dict[str, Watched]
    sockets: OpenSockets = field(default_factory=lambda: OpenSockets(max_websockets()))
    knocker: Knocker = field(default_factory=Knocker)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def public_key(self) -> str:
        return self.identity.public_key.hex()

    def now(self) -> float:
        return self.time.now()

    def stop(self) -> None:
        """Let all websockets end; called before the web server is told to stop."""
        self.stopping.set()
        for watched in self.projects.values():
            watched.hub.close()
            watched.mirror.close()

    def watched(self, project_id: str) -> Watched:
        """Raises UnknownProject."""
        watched = self.projects.get(project_id)
        if watched is None:
            known = ", ".join(self.projects) or "none"
            raise UnknownProject(f"this coordinator has no project {project_id[:64]!r}; its projects: {known}")
        return watched


@asynccontextmanager
async def run_coordinator(settings: Settings, clock: Clock, eyes: Eyes | None = None) -> AsyncIterator[Coordinator]:
    """A coordinator with all its tasks running; at the end what is unsaved is written. Raises ConfigError.

    `eyes` replaces the DHT peer (for tests).
    """
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the data folder {settings.data_dir} cannot be made: {error}") from error
    identity = Identity.load_or_create(settings.key_file)
    async with open_database(settings.database) as database:
        if eyes is not None:
            async with _run_tasks(settings, identity, clock, database, eyes) as coordinator:
                yield coordinator
        else:
            async with (
                open_eyes(settings, identity, clock) as opened,
                _run_tasks(settings, identity, clock, database, opened) as coordinator,
            ):
                yield coordinator


@asynccontextmanager
async def _run_tasks(
    settings: Settings, identity: Identity, clock: Clock, database: Database, eyes: Eyes
) -> AsyncIterator[Coordinator]:
    time = SteadyTime(clock)
    async with database.writing() as session:
        await write_projects(session, settings.from_files, settings.from_flags, time.now())
    projects = await restore(database, identity, time.now(), settings.own_address)
    coordinator = Coordinator(settings, identity, clock, time, database, eyes, projects)
    recorder = Recorder(database, lambda: [watched.swarm for watched in projects.values()], time.now)

    def watched() -> list[Watched]:
        return list(projects.values())

    jobs: dict[str, Callable[[], Awaitable[None]]] = {
        "ticks": lambda: run_ticks(watched, settings.url, time.now),
        "looks": lambda: run_looks(eyes, watched, time.now),
        "publishing": lambda: run_publishing(eyes, watched, time.now),
        "prober": lambda: run_prober(eyes, lambda: [each.swarm for each in watched()], time.now),
        "recorder": recorder.run,
    }
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_keep_running(name, job), name=name) for name, job in jobs.items()]
        try:
            yield coordinator
        finally:
            coordinator.stop()
            for task in running:
                task.cancel()
    await recorder.flush(last=True)


async def _keep_running(name: str, job: Callable[[], Awaitable[None]]) -> None:
    """A task that fails is a bug of ours; its traceback is logged and the swarm stays watched."""
    while True:
        try:
            await job()
        except Exception:
            log.exception("the task %s failed; it starts again in %.0f s", name, RESTART_TASK_AFTER_S)
        await asyncio.sleep(RESTART_TASK_AFTER_S)


async def restore(database: Database, identity: Identity, now: float, own_address: str = "") -> dict[str, Watched]:
    """All projects as the database remembers them."""
    projects: dict[str, Watched] = {}
    async with database.reading() as session:
        numbers = itertools.count(await EventRepository(session).last_id() + 1)
        for record in await ProjectRepository(session).all_records():
            swarm = ProjectSwarm(record, numbers.__next__, own_address)
            swarm.events.extend(await EventRepository(session).latest(record.id, EVENTS_SHOWN))
            hours = await RollupRepository(session).hours_of_nodes(record.id, now - BEAT_HOURS * HOUR_S)
            for node in await NodeRepository(session).all_of(record.id, now):
                for start_s, rollup in hours.get(node.id, []):
                    node.beats.restore(start_s, rollup)
                swarm.restore_node(node, now)
            for run in reversed(await RunRepository(session).latest(record.id)):
                swarm.book.runs[run.trainer_id, run.name] = run
            projects[record.id] = Watched(swarm, MirrorHub(record.id, identity))
    return projects
