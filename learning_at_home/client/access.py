"""From what a researcher types (an address, an id, a file, a key) to what joining needs.

Synchronous; at most one HTTP request.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec

from learning_at_home.clock import CLOCK_SKEW_TOLERATED_S, SystemClock
from learning_at_home.errors import ConfigError, CoordinatorUnreachable, LearningAtHomeError, UnknownProject
from learning_at_home.identity import PUBLIC_KEY_BYTES
from learning_at_home.project import ProjectAccess, ProjectRecord
from learning_at_home.version import AGENT

log = logging.getLogger(__name__)

MAX_ACCESS_BYTES = 4 << 20  # a project of 256 layers takes about 100 KB
CORRECT_CLOCK_S = 1.0  # below it the time hint's own error, half a round trip, may be the larger one
_PROJECT_URL = re.compile(
    r"(?P<root>https?://[^/?#\s]+(?:/[^?#\s]+?)?)/p/(?P<project>[a-z][a-z0-9-]{1,39})(?:[/?#].*)?"
)


@dataclass(frozen=True, slots=True)
class ProjectUrl:
    """`https://host/p/digits`, taken apart."""

    root: str
    project: str

    @classmethod
    def parse(cls, text: str) -> ProjectUrl:
        """Raises ConfigError with an example."""
        match = _PROJECT_URL.fullmatch(text.strip())
        if match is None:
            raise ConfigError(
                f"{text[:200]!r} is not a project's address such as 'https://coordinator.example/p/digits'; "
                "without a coordinator use Swarm.connect(bootstrap=['host:port'], project=...)"
            )
        return cls(match["root"], match["project"])

    @property
    def access(self) -> str:
        return f"{self.root}/api/v1/projects/{self.project}/access"

    @property
    def telemetry(self) -> str:
        """The websocket that trainers and nodes report to."""
        return f"ws{self.root.removeprefix('http')}/api/v1/projects/{self.project}/telemetry"


def fetch_access(url: ProjectUrl, timeout_s: float) -> tuple[ProjectAccess, float]:
    """The coordinator's answer, and by how many seconds its clock is ahead of this machine's (to half the round trip).

    Raises CoordinatorUnreachable or UnknownProject.
    """
    sent_s = time.time()
    try:
        response = httpx.get(url.access, timeout=timeout_s, headers={"user-agent": AGENT}, follow_redirects=True)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CoordinatorUnreachable(
            f"{url.root} did not answer ({str(error) or type(error).__name__}): "
            "is the coordinator running, and is the address right?"
        ) from error
    ahead_of = (sent_s + time.time()) / 2
    if response.status_code == 404 and _is_ours(response):
        raise UnknownProject(f"{url.root} has no project {url.project!r}; {url.root} lists those it has")
    if response.status_code != 200 or len(response.content) > MAX_ACCESS_BYTES:
        raise CoordinatorUnreachable(f"{url.access} answered with status {response.status_code}")
    try:
        access = msgspec.json.decode(response.content, type=ProjectAccess)
        access.record.check()
    except (msgspec.DecodeError, RecursionError, LearningAtHomeError) as error:
        raise CoordinatorUnreachable(
            f"{url.access} did not answer as a coordinator does ({error}): is this the address of a Learning@home "
            "project, of a version that this one can talk to?"
        ) from error
    return access, access.wall_s - ahead_of


def check_way_in(url: str | None, bootstrap: Sequence[str], project: str | Path | ProjectRecord | None) -> None:
    """Raises ConfigError when what was given leads into no swarm, or into two."""
    if url is not None and project is not None:
        raise ConfigError("the address already names the project: leave project= away, or connect by bootstrap= alone")
    if url is None and not bootstrap:
        raise ConfigError(
            "no way into the swarm: give a coordinator's project address, or bootstrap=['host:port', ...]"
        )
    if isinstance(bootstrap, str):
        raise ConfigError(f"bootstrap= takes a list of addresses: bootstrap=[{bootstrap!r}]")


def reach_coordinator(address: ProjectUrl, clock: SystemClock, others: bool, timeout_s: float) -> ProjectAccess | None:
    """The coordinator's answer, the clock corrected by its hint; None when it is down and there are `others` to ask."""
    try:
        access, ahead_s = fetch_access(address, timeout_s)
    except CoordinatorUnreachable as error:
        if not others:
            raise
        log.warning("%s; going on with the bootstrap peers alone", error)
        return None
    if abs(ahead_s) > CORRECT_CLOCK_S:
        clock.offset_s = ahead_s
        if abs(ahead_s) > CLOCK_SKEW_TOLERATED_S:
            log.warning(
                "this machine's clock differs by %.0f s from the coordinator's; corrected here, please set it", ahead_s
            )
    return access


def wanted_project(project: str | Path | ProjectRecord | None, address: ProjectUrl | None) -> ProjectRecord | str:
    """The record that was given, or the id under which the DHT has it. Raises ConfigError."""
    if address is not None:
        return address.project
    if isinstance(project, ProjectRecord):
        return project.check()
    if isinstance(project, Path) or (isinstance(project, str) and project.endswith(".toml")):
        return ProjectRecord.from_toml(Path(project))
    if not project:
        raise ConfigError("which project? Give project= its id, its record or its TOML file, or connect by its address")
    return project


def key_bytes(key: str | bytes | None) -> bytes | None:
    """A coordinator's public key, from its hexadecimal form too. Raises ConfigError."""
    if key is None:
        return None
    try:
        raw = bytes.fromhex(key) if isinstance(key, str) else key
    except ValueError:
        raw = b""
    if len(raw) != PUBLIC_KEY_BYTES:
        raise ConfigError("coordinator_key must be an Ed25519 public key: 64 hexadecimal digits")
    return raw


def _is_ours(response: httpx.Response) -> bool:
    """Whether a 404 comes from a coordinator (a JSON object with `error`) and not from another web server."""
    try:
        return "error" in msgspec.json.decode(response.content, type=dict[str, object])
    except msgspec.DecodeError:
        return False
