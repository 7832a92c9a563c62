"""The drivers that keep a swarm's picture true: ask the directory, decide, draw, publish. Async; each runs until
cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from backend.live.curves import CHART_EVERY_S
from backend.live.eyes import Eyes
from backend.live.figures import sample
from backend.live.hub import Hub
from backend.live.mirror import MirrorHub
from backend.live.portrait import view
from backend.live.swarm import ProjectSwarm
from backend.live.token_bucket import TokenBucket
from dashboard.view import ProjectView
from learning_at_home.directory.publisher import PROJECT_REFRESH_S
from learning_at_home.errors import LearningAtHomeError, RecordRefused

log = logging.getLogger(__name__)

TICK_S = 0.2
ADVANCE_AT_LEAST_EVERY_S = 1.0
PUBLISH_AT_MOST_EVERY_S = 0.25
PUBLISH_AT_LEAST_EVERY_S = 1.5  # browsers count on one every 2 s
RESTS_PER_WORK = 4.0  # a large swarm (16,000 experts: 0.3 s for a look and a drawing) leaves the loop to the others
LOOK_EVERY_S = 5.0
LOOK_AGAIN_S = 0.7  # while a node talks to us that the DHT does not know yet
LOOK_AT_MOST_EVERY_S = 0.3
EARLY_LOOKS_PER_S, EARLY_LOOKS_BURST = 0.5, 20.0  # of a project, beyond one every LOOK_EVERY_S: each crawls the DHT
PUBLISH_PROJECT_AGAIN_S = 60.0  # when nobody held it


@dataclass(slots=True)
class Watched:
    """One project, its readers, and when what was done last."""

    swarm: ProjectSwarm
    mirror: MirrorHub
    hub: Hub = field(default_factory=Hub)
    advanced_s: float = 0.0
    sampled_s: float = 0.0
    looked_s: float = 0.0
    drawn: ProjectView | None = None
    moved: bool = False  # something changed that no reader was told of
    rested_s: float = 0.0  # until then nothing is done that can wait
    early_looks: TokenBucket = field(default_factory=lambda: TokenBucket(EARLY_LOOKS_PER_S, EARLY_LOOKS_BURST))

    def current_view(self, public_url: str, now: float) -> ProjectView:
        """The view, not older than PUBLISH_AT_MOST_EVERY_S: many readers of a page cost one drawing."""
        if self.drawn is None or (now - self.drawn.at_s >= PUBLISH_AT_MOST_EVERY_S and now >= self.rested_s):
            with self._then_rest(now):
                if self.swarm.dirty:
                    self.advance(now)
                self.drawn = view(self.swarm, public_url, now)
        return self.drawn

    def advance(self, now: float) -> None:
        self.swarm.advance(now)
        self.mirror.suspect(self.swarm.vanished(now), now)
        self.advanced_s = now

    def tick(self, public_url: str, now: float) -> None:
        """Do what is due, then rest in proportion."""
        if now < self.rested_s:
            return
        with self._then_rest(now):
            self.moved |= self.swarm.dirty
            if self.swarm.dirty or now - self.advanced_s >= ADVANCE_AT_LEAST_EVERY_S:
                self.advance(now)
            if now - self.sampled_s >= CHART_EVERY_S:
                self.sampled_s = now
                sample(self.swarm, now)
                self.moved = True
            since_s = now - self.hub.published_s
            if self.hub.readers and since_s >= (PUBLISH_AT_MOST_EVERY_S if self.moved else PUBLISH_AT_LEAST_EVERY_S):
                self.moved = False
                self.drawn = view(self.swarm, public_url, now)
                self.hub.publish(self.drawn, now)

    def wants_look(self, now: float) -> bool:
        """Whether to ask the directory now."""
        since_s = now - self.looked_s
        if since_s >= LOOK_EVERY_S:
            return True
        wants = self.swarm.wants_directory and since_s >= LOOK_AT_MOST_EVERY_S
        lacks = since_s >= LOOK_AGAIN_S and self.swarm.lacks_announcements(now)
        return (wants or lacks) and self.early_looks.take(now)

    @contextmanager
    def _then_rest(self, now: float) -> Iterator[None]:
        started_s = time.perf_counter()
        yield
        self.rested_s = now + RESTS_PER_WORK * (time.perf_counter() - started_s)


Projects = Callable[[], Iterable[Watched]]


async def run_ticks(projects: Projects, public_url: str, now: Callable[[], float]) -> None:
    """Advance all swarms and publish what changed."""
    while True:
        for watched in projects():
            watched.tick(public_url, now())
        await asyncio.sleep(TICK_S)


async def run_looks(eyes: Eyes, projects: Projects, now: Callable[[], float]) -> None:
    """Ask the DHT who serves what; at once when a node appears."""

    async def look(watched: Watched) -> None:
        try:
            seen = await eyes.look(watched.swarm.record)
        except LearningAtHomeError as error:
            log.info("the DHT cannot be asked about project %s: %s", watched.swarm.record.id, error)
            return
        watched.swarm.directory_seen(seen, now())
        watched.mirror.seen(eyes.records(watched.swarm.record.id), now())

    while True:
        due = [watched for watched in projects() if watched.wants_look(now())]
        async with asyncio.TaskGroup() as tasks:
            for watched in due:
                watched.looked_s, watched.swarm.wants_directory = now(), False
                tasks.create_task(look(watched))
        await asyncio.sleep(TICK_S / 2)


async def run_publishing(eyes: Eyes, projects: Projects, now: Callable[[], float]) -> None:
    """Keep every project record in the DHT."""
    published: dict[str, tuple[int, float]] = {}  # project -> revision, when it is due again
    while True:
        for watched in projects():
            record = watched.swarm.record
            revision, due_s = published.get(record.id, (-1, 0.0))
            if revision == record.revision and now() < due_s:
                continue
            try:
                holders = await eyes.publish(record)
            except LearningAtHomeError as error:
                level = logging.WARNING if isinstance(error, RecordRefused) else logging.INFO  # the latter mends itself
                log.log(level, "project %s cannot be published yet: %s", record.id, error)
                holders = 0
            published[record.id] = (
                record.revision,
                now() + (PROJECT_REFRESH_S if holders else PUBLISH_PROJECT_AGAIN_S),
            )
        await asyncio.sleep(1.0)
