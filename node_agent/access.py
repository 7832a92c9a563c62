"""Ask a coordinator for what a node needs to join. Async; stateless.

A coordinator that is starting, or busy, is asked again with growing pauses; an answer that no retry will change is
raised at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time

import httpx
import msgspec

from learning_at_home.errors import ConfigError, CoordinatorUnreachable, LearningAtHomeError, UnknownProject
from learning_at_home.project import ProjectAccess
from node_agent.config import split_coordinator

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
REQUEST_TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 4 << 20  # a record of 256 layers takes about 200 kB


class _ProjectHeader(msgspec.Struct):
    id: str


class _ProjectEntry(msgspec.Struct):
    """One entry of the coordinator's list; it says more than this."""

    header: _ProjectHeader


async def fetch_access(coordinator: str, project: str | None, timeout_s: float) -> tuple[str, ProjectAccess]:
    """The coordinator's root URL, and the access of the project that the URL or `project` names.

    Raises CoordinatorUnreachable when no answer came in time, UnknownProject, or ConfigError when the URL names no
    project and the coordinator has several.
    """
    root, named = split_coordinator(coordinator)
    deadline = time.monotonic() + timeout_s
    async with httpx.AsyncClient(timeout=REQUEST_TIMEOUT_S, follow_redirects=True) as client:
        project = named or project or await _only_project(client, root, deadline)
        answer = await _get(client, f"{root}/api/v1/projects/{project}/access", deadline)
    try:
        access = msgspec.json.decode(answer, type=ProjectAccess)
        access.record.check()
    except (ValueError, RecursionError, LearningAtHomeError) as error:  # ValueError: also text that is not UTF-8
        raise CoordinatorUnreachable(f"{root} did not answer as a coordinator of this version does: {error}") from error
    return root, access


async def _only_project(client: httpx.AsyncClient, root: str, deadline: float) -> str:
    answer = await _get(client, f"{root}/api/v1/projects", deadline)
    try:
        projects = [entry.header.id for entry in msgspec.json.decode(answer, type=list[_ProjectEntry])]
    except (ValueError, RecursionError) as error:
        raise CoordinatorUnreachable(f"{root} did not answer as a coordinator of this version does: {error}") from error
    if len(projects) != 1:
        choices = ", ".join(f"{root}/p/{project}" for project in projects) or "none yet"
        raise ConfigError(f"this coordinator has {len(projects)} projects; name one by its address: {choices}")
    return projects[0]


async def _get(client: httpx.AsyncClient, url: str, deadline: float) -> bytes:
    """The body of a good answer; asks again until the deadline (monotonic)."""
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            response = await client.get(url)
            if response.status_code == httpx.codes.OK and len(response.content) <= MAX_ANSWER_BYTES:
                return response.content
            problem = f"status {response.status_code}"
            if response.status_code == httpx.codes.NOT_FOUND:
                raise UnknownProject(f"the coordinator knows no project at {url}; is its address right?")
            if response.is_client_error and response.status_code != httpx.codes.TOO_MANY_REQUESTS:
                raise CoordinatorUnreachable(f"{url} answered with {problem}: {response.text[:200]}")
        except httpx.HTTPError as error:
            problem = str(error) or type(error).__name__
        if time.monotonic() + pause_s > deadline:
            raise CoordinatorUnreachable(f"{url} did not answer in time ({problem}); is the coordinator running?")
        log.info("%s: %s; asking again in %.1f s", url, problem, pause_s)
        await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
