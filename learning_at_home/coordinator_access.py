"""Ask a coordinator for what joining its project needs, and believe no more of the answer than can be true.

Async. A coordinator is a stranger until its key is known: an answer has a bound in bytes and one deadline, which no
slow drip outlives; nothing compressed is taken; what people are shown is printable. Whatever does not answer as a
coordinator does is CoordinatorUnreachable.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec

from learning_at_home.clock import CLOCK_SKEW_TOLERATED_S, SystemClock
from learning_at_home.errors import ConfigError, CoordinatorUnreachable, LearningAtHomeError, UnknownProject
from learning_at_home.identity import PUBLIC_KEY_BYTES
from learning_at_home.project import ProjectAccess
from learning_at_home.text import printable
from learning_at_home.version import AGENT

log = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 4 << 20  # a project of 256 layers takes about 100 KB
MAX_REDIRECTS = 5
REQUEST_TIMEOUT_S, LEAST_TIMEOUT_S = 10.0, 1.0  # of one attempt among several, the last of which has a chance, too
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0  # between attempts
MAX_BOOTSTRAP_PEERS = 64
CLOCK_NOISE_S = 1.0  # below it the hint's own error, half a round trip, may be the larger one
BELIEVABLE_SKEW_S = 86_400.0  # a clock that is wrong by more is not corrected, but set by its owner
BEFORE_THIS_PROGRAM_S = 1_735_689_600.0  # 2025: a clock that shows less was never set
_PROJECT_ID = re.compile(r"[a-z][a-z0-9-]{1,39}")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class CoordinatorUrl:
    """`https://host/p/digits`, taken apart; `project` is None in a coordinator's own address, `https://host`."""

    root: str
    project: str | None

    @classmethod
    def parse(cls, text: str) -> CoordinatorUrl:
        """Pages below a project's are taken for the project. Raises ConfigError with an example."""
        text = text.strip()
        try:
            parts = urlsplit(text)
            named = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            named = False
        if named and text.isprintable() and " " not in text:
            root, separator, rest = (parts.path.rstrip("/") + "/").partition("/p/")
            project = rest.partition("/")[0]
            if not separator or _PROJECT_ID.fullmatch(project):
                return cls(f"{parts.scheme}://{parts.netloc}{root.rstrip('/')}", project if separator else None)
        raise ConfigError(f"{text[:200]!r} is not the address of a project, as in https://coordinator.example/p/digits")

    @property
    def projects(self) -> str:
        return f"{self.root}/api/v1/projects"

    @property
    def access(self) -> str:
        return f"{self.projects}/{self.project}/access"

    @property
    def telemetry(self) -> str:
        """The websocket that trainers and nodes report to."""
        return f"ws{self.access.removeprefix('http').removesuffix('/access')}/telemetry"


@dataclass(frozen=True, slots=True)
class Access:
    """What a coordinator answered, checked."""

    url: CoordinatorUrl  # with the project's id
    access: ProjectAccess
    ahead_s: float  # by how much its clock is ahead of this machine's, right to half a round trip

    def correct(self, clock: SystemClock) -> None:
        """Set the clock's offset by the coordinator's time, and tell a person whose clock needs it."""
        if abs(self.ahead_s) > CLOCK_NOISE_S:
            clock.offset_s = self.ahead_s
        if abs(self.ahead_s) > CLOCK_SKEW_TOLERATED_S:
            log.warning(
                "this machine's clock differs by %.0f s from the coordinator's; corrected here, please set it",
                self.ahead_s,
            )


async def fetch_access(url: CoordinatorUrl, timeout_s: float, *, patient: bool = False) -> Access:
    """The access of the project that the URL names, or of the coordinator's only one.

    `patient`: a coordinator that is starting, or busy, is asked again with growing pauses until the time is over.
    Raises CoordinatorUnreachable, UnknownProject, or ConfigError when the URL names no project and there are several.
    """
    deadline = time.monotonic() + timeout_s
    if url.project is None:
        url = CoordinatorUrl(url.root, await _only_project(url, deadline, patient))
    answer = await _answer(url.access, deadline, patient)
    if answer.status == httpx.codes.NOT_FOUND:
        raise UnknownProject(f"{url.root} has no project {url.project!r}; {url.root} lists those it has")
    access = _decoded(url.root, answer, lambda body: _checked(msgspec.json.decode(body, type=ProjectAccess)))
    return Access(url, access, _ahead_s(url.root, access.wall_s, answer))


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine: no proxy leads there."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    middle_s: float  # of the round trip, on this machine's wall clock


class _ProjectHeader(msgspec.Struct):
    id: str


class _ProjectEntry(msgspec.Struct):
    """One entry of the coordinator's list; it says more than this."""

    header: _ProjectHeader


async def _only_project(url: CoordinatorUrl, deadline: float, patient: bool) -> str:
    answer = await _answer(url.projects, deadline, patient)
    entries = _decoded(url.root, answer, lambda body: msgspec.json.decode(body, type=list[_ProjectEntry]))
    projects = [entry.header.id for entry in entries if _PROJECT_ID.fullmatch(entry.header.id)]
    if len(projects) != 1:
        choices = ", ".join(f"{url.root}/p/{project}" for project in projects[:20]) or "none yet"
        raise ConfigError(f"this coordinator has {len(projects)} projects; name one by its address: {choices}")
    return projects[0]


async def _answer(url: str, deadline: float, patient: bool) -> _Answer:
    """A coordinator's answer of status 200 or 404. Raises CoordinatorUnreachable."""
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            left_s = deadline - time.monotonic()
            async with asyncio.timeout(min(REQUEST_TIMEOUT_S, max(LEAST_TIMEOUT_S, left_s)) if patient else left_s):
                answer = await _ask(url)
            if answer.status == httpx.codes.OK or (answer.status == 404 and _is_json_object(answer.body)):
                return answer
            problem = f"status {answer.status}: {printable(answer.body[:200].decode(errors='replace'))}"
            if 400 <= answer.status < 500 and answer.status != httpx.codes.TOO_MANY_REQUESTS:
                raise CoordinatorUnreachable(f"{url} answered with {problem}")
        except httpx.HTTPError as error:
            problem = printable(str(error)) or type(error).__name__
        except TimeoutError:
            problem = "no whole answer in time"
        if not patient or time.monotonic() + pause_s > deadline:
            raise CoordinatorUnreachable(
                f"{url} did not answer ({problem}); is the coordinator running? Is the address right?"
            )
        log.info("%s: %s; asking again in %.1f s", url, problem, pause_s)
        await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


async def _ask(url: str) -> _Answer:
    """The answer after redirects, whose own bodies are not read. Raises httpx.HTTPError and CoordinatorUnreachable."""
    asked = url
    for _ in range(1 + MAX_REDIRECTS):
        # A transport of its own is what keeps httpx from the proxies of the environment, and from nothing else.
        direct = httpx.AsyncHTTPTransport() if is_loopback(url) else None
        sent_s = time.time()
        try:
            async with (
                httpx.AsyncClient(transport=direct, timeout=None) as client,  # noqa: S113 - our caller's deadline
                client.stream("GET", url, headers={"user-agent": AGENT, "accept-encoding": "identity"}) as response,
            ):
                middle_s = (sent_s + time.time()) / 2
                if response.next_request is None:
                    return _Answer(response.status_code, await _body(url, response), middle_s)
                following = str(response.next_request.url)
        except httpx.InvalidURL as error:
            raise CoordinatorUnreachable(f"{asked}: {printable(str(error))}") from error
        if url.startswith("https:") and not following.startswith("https:"):
            raise CoordinatorUnreachable(f"{asked} leads from https to {printable(following)}, which anybody can read")
        url = following
    raise CoordinatorUnreachable(f"{asked} leads from one address to the next, more than {MAX_REDIRECTS} times")


async def _body(url: str, response: httpx.Response) -> bytes:
    """What came, at most MAX_ANSWER_BYTES of it."""
    encoding = response.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise CoordinatorUnreachable(f"{url} answers compressed ({printable(encoding, 40)}), which nobody asked for")
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > MAX_ANSWER_BYTES:
            raise CoordinatorUnreachable(f"{url} answers with more than {MAX_ANSWER_BYTES:,} bytes")
    return bytes(body)


def _decoded(root: str, answer: _Answer, decode: Callable[[bytes], _T]) -> _T:
    try:
        return decode(answer.body)
    except (ValueError, RecursionError, LearningAtHomeError) as error:  # ValueError: also text that is not UTF-8
        raise CoordinatorUnreachable(
            f"{root} did not answer as a coordinator does ({printable(str(error))}): is this the address of a "
            "Learning@home project, of a version that this one can talk to?"
        ) from error


def _checked(access: ProjectAccess) -> ProjectAccess:
    """The access, with nothing in it that would surprise a terminal or a page. Raises ConfigError or ValueError."""
    access.record.check()
    if len(bytes.fromhex(access.coordinator_public_key)) != PUBLIC_KEY_BYTES:
        raise ConfigError("its public key has another length")
    if len(access.bootstrap) > MAX_BOOTSTRAP_PEERS or any(len(peer) > 300 for peer in access.bootstrap):
        raise ConfigError("its bootstrap peers are too many or too long")
    dashboard_url = printable(access.dashboard_url, 500)
    return msgspec.structs.replace(
        access,
        coordinator_public_key=access.coordinator_public_key.lower(),
        bootstrap=tuple(printable(peer, 300) for peer in access.bootstrap),
        your_address=printable(access.your_address),
        agent=printable(access.agent, 80),
        dashboard_url=dashboard_url if dashboard_url.startswith(("http://", "https://")) else "",
    )


def _ahead_s(root: str, theirs_s: float, answer: _Answer) -> float:
    """Raises CoordinatorUnreachable for a difference that no clock has by drifting."""
    ahead_s = theirs_s - answer.middle_s
    if math.isfinite(ahead_s) and abs(ahead_s) <= BELIEVABLE_SKEW_S:
        return ahead_s
    if answer.middle_s < BEFORE_THIS_PROGRAM_S <= theirs_s:
        whose = "this machine's clock is wrong: set it"
    elif theirs_s < BEFORE_THIS_PROGRAM_S <= answer.middle_s:
        whose = "the coordinator's clock is wrong: tell its owner"
    else:
        whose = "one of the two is wrong: look at a third clock"
    raise CoordinatorUnreachable(
        f"{root} says that it is {_date(theirs_s)}; by this machine's clock it is {_date(answer.middle_s)}: {whose}"
    )


def _date(wall_s: float) -> str:
    try:
        return f"{datetime.fromtimestamp(wall_s, UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{wall_s:.3g} s after 1970"


def _is_json_object(body: bytes) -> bool:
    """What a coordinator answers for a project that it does not have; another web server has a page for people."""
    try:
        msgspec.json.decode(body, type=dict[str, object])
    except (ValueError, RecursionError):
        return False
    return True
