"""Decides what becomes of the projects that the owner's flags and files name."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from backend.projects.repository import ProjectRepository
from learning_at_home.project import ProjectRecord

log = logging.getLogger(__name__)


async def write_projects(
    session: AsyncSession, from_files: Iterable[ProjectRecord], from_flags: Iterable[ProjectRecord], now: float
) -> None:
    """A file's record replaces what is stored, with the next revision when it differs; flags only make what is
    missing.
    """
    projects = ProjectRepository(session)
    for wanted in from_flags:
        if await projects.record(wanted.id) is None:
            await projects.save(wanted, now)
            log.info("made project %s with layers %s", wanted.id, ", ".join(each.prefix for each in wanted.layers))
    for wanted in from_files:
        stored = await projects.record(wanted.id)
        if stored is None:
            await projects.save(wanted, now)
            log.info("made project %s from its file", wanted.id)
        elif msgspec.structs.replace(wanted, revision=stored.revision) != stored:
            # A file that says its revision is believed when it is ahead; else the change itself counts as one.
            revision = max(wanted.revision, stored.revision + 1)
            await projects.save(msgspec.structs.replace(wanted, revision=revision), now)
            log.info("project %s changed: revision %d", wanted.id, revision)
