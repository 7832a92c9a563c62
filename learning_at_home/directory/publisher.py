"""Put announcements and project records into the DHT, and fetch projects from it. Async; keeps no state.

The timer that refreshes an announcement belongs to the node's announcer.
"""

from __future__ import annotations

import logging
import math
import zlib

from learning_at_home.dht.node import DhtNode
from learning_at_home.dht.records import MAX_VALUE_BYTES
from learning_at_home.directory.announcement import (
    ANNOUNCEMENT_LIFE_S,
    Announcement,
    node_name,
    prefix_name,
    project_key,
)
from learning_at_home.errors import AmbiguousProject, NetworkError, RecordRefused, UnknownProject, WireError
from learning_at_home.project import ProjectRecord

log = logging.getLogger(__name__)

PROJECT_LIFE_S = 3600.0  # a coordinator publishes at start, on every change and every 20 minutes: two may be lost
PROJECT_REFRESH_S = 1200.0
MAX_PROJECT_BYTES = 256 * 1024  # unpacked: 256 layers of 300 bytes and a long description take a third of it


async def publish(
    dht: DhtNode, project: ProjectRecord, announcement: Announcement, *, before: Announcement | None = None
) -> int:
    """How many peers hold it under the node's own key. Signed once for all prefixes that it claims cells under; lives
    for 60 s.

    `before`: what was announced last; where this one claims nothing any more its end is told at once.
    Raises RecordRefused or BootstrapFailed when nobody holds it.
    """
    others = prefix_names(project, announcement)
    if before is not None:
        others += prefix_names(project, before)
    name = node_name(project.id, dht.identity.public_key)
    return await dht.store_slots(name, others, announcement.to_bytes(), ANNOUNCEMENT_LIFE_S)


async def withdraw(dht: DhtNode, project: ProjectRecord, announcement: Announcement) -> None:
    """Replace it by a tombstone, under all its keys: a clean stop. Never raises for want of peers."""
    name = node_name(project.id, dht.identity.public_key)
    try:
        await dht.withdraw_slots(name, prefix_names(project, announcement))
    except (NetworkError, RecordRefused) as error:
        log.info("the announcement could not be withdrawn, it will expire: %s", error)


def prefix_names(project: ProjectRecord, announcement: Announcement) -> list[str]:
    """Of the prefix keys that the announcement has slots of: for a claim of ffn0.3.17 those of ffn0 and ffn0.3."""
    names: dict[str, None] = {}
    for claim in announcement.claims:
        grid = project.layer(claim.prefix).cells
        cells = list(claim.cells())
        for length in range(len(grid.shape)):
            below = math.prod(grid.shape[length:])
            for first in sorted({cell - cell % below for cell in cells}):
                indices = grid.uid(claim.prefix, first).indices[:length]
                names[prefix_name(project.id, claim.prefix, grid, indices)] = None
    return list(names)


async def publish_project(dht: DhtNode, record: ProjectRecord) -> int:
    """How many peers hold it. The identity of `dht` must be the coordinator's key. Lives for an hour.

    Raises RecordRefused when it is too large for the DHT; RecordRefused or BootstrapFailed when nobody holds it.
    """
    packed = zlib.compress(record.to_bytes(), 9)
    if len(packed) > MAX_VALUE_BYTES:
        raise RecordRefused(
            f"project {record.id} takes {len(packed):,} bytes in the DHT, where {MAX_VALUE_BYTES:,} fit:"
            " shorten its description, or have peers fetch it from the coordinator's address"
        )
    return await dht.store(project_key(record.id), packed, PROJECT_LIFE_S)


async def fetch_project(
    dht: DhtNode, project_id: str, coordinator_key: bytes | None = None
) -> tuple[ProjectRecord, bytes]:
    """The project record and the public key of the coordinator that published it.

    Raises UnknownProject when nobody (or not this coordinator) publishes it; AmbiguousProject, with the keys, when
    several do and none is named.
    """
    found = await dht.find(project_key(project_id))
    projects: dict[bytes, ProjectRecord] = {}
    for record in found.records:
        if coordinator_key is not None and record.publisher != coordinator_key:
            continue
        try:
            project = _unpack_project(record.value)
        except WireError as error:
            log.debug("ignored a record under the key of project %s: %s", project_id, error)
            continue
        if project.id == project_id:
            projects[record.publisher] = project
    if not projects:
        by = f" by coordinator {coordinator_key.hex()}" if coordinator_key else ""
        raise UnknownProject(
            f"no project {project_id[:64]!r} is published{by}; {found.num_answered} peers of the DHT answered"
        )
    if len(projects) > 1:
        keys = ", ".join(key.hex() for key in sorted(projects)[:8])
        raise AmbiguousProject(
            f"{len(projects)} coordinators publish a project {project_id!r}; name the key of the one you mean: {keys}"
        )
    publisher, project = projects.popitem()
    return project, publisher


def _unpack_project(packed: bytes) -> ProjectRecord:
    """Raises WireError. Unpacks no more than a project record may take."""
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(packed, MAX_PROJECT_BYTES)
    except zlib.error as error:
        raise WireError(f"not a packed project record: {error}") from error
    if not unpacker.eof:
        raise WireError("a packed project record that is cut off or too large")
    try:
        return ProjectRecord.from_bytes(data)
    except UnicodeDecodeError as error:  # msgspec lets it through
        raise WireError("a project record with text that is not UTF-8") from error
