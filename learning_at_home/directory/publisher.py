"""Put announcements and project records into the DHT, and fetch projects from it. Async; keeps no state.

The timer that refreshes an announcement belongs to the node's announcer.
"""

from __future__ import annotations

from collections.abc import Iterable

from learning_at_home.dht.node import DhtNode
from learning_at_home.directory.announcement import Announcement
from learning_at_home.project import ProjectRecord

PROJECT_LIFE_S = 3600.0  # a coordinator publishes at start, on every change and every 20 minutes: two may be lost
PROJECT_REFRESH_S = 1200.0


async def publish(dht: DhtNode, announcement: Announcement, *, dropped: Iterable[str] = ()) -> int:
    """The least number of peers that hold it, over the layers that it claims cells of. Lives for 60 s.

    `dropped`: prefixes that the last announcement claimed and this one does not; they are withdrawn at once.
    Raises RecordRefused or BootstrapFailed.
    """
    raise NotImplementedError


async def withdraw(dht: DhtNode, announcement: Announcement) -> None:
    """Replace it by tombstones in every layer that it claims cells of: a clean stop. Never raises for want of peers."""
    raise NotImplementedError


async def publish_project(dht: DhtNode, record: ProjectRecord) -> int:
    """How many peers hold it. The identity of `dht` must be the coordinator's key. Lives for an hour."""
    raise NotImplementedError


async def fetch_project(
    dht: DhtNode, project_id: str, coordinator_key: bytes | None = None
) -> tuple[ProjectRecord, bytes]:
    """The project record and the public key of the coordinator that published it.

    Raises UnknownProject when nobody (or not this coordinator) publishes it; AmbiguousProject, with the keys, when
    several do and none is named.
    """
    raise NotImplementedError
