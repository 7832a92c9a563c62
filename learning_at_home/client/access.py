"""A project's web address to what a trainer needs to join it. Synchronous; one HTTP request."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import httpx
import msgspec

from learning_at_home.errors import ConfigError, CoordinatorUnreachable, LearningAtHomeError, UnknownProject
from learning_at_home.project import ProjectAccess
from learning_at_home.version import AGENT

MAX_ACCESS_BYTES = 4 << 20  # a project of 256 layers takes about 100 KB
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


def _is_ours(response: httpx.Response) -> bool:
    """Whether a 404 comes from a coordinator (a JSON object with `error`) and not from another web server."""
    try:
        return "error" in msgspec.json.decode(response.content, type=dict[str, object])
    except msgspec.DecodeError:
        return False
