"""From what a researcher types (an address, an id, a file, a key) to what joining needs.

Synchronous; asks at most the coordinator.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from learning_at_home.client.loop_thread import LoopThread
from learning_at_home.clock import SystemClock
from learning_at_home.coordinator_access import Access, CoordinatorUrl, fetch_access
from learning_at_home.data_folders import data_folder
from learning_at_home.errors import ConfigError, CoordinatorUnreachable
from learning_at_home.identity import PUBLIC_KEY_BYTES
from learning_at_home.project import ProjectAccess, ProjectRecord

log = logging.getLogger(__name__)

GIVE_UP_S = 1.0  # after the deadline: what cannot be interrupted, the look-up of a name, is left behind


def parse_project_url(text: str) -> CoordinatorUrl:
    """Raises ConfigError with an example."""
    without = "without a coordinator use Swarm.connect(bootstrap=['host:port'], project=...)"
    try:
        url = CoordinatorUrl.parse(text)
    except ConfigError as error:
        raise ConfigError(f"{error.message}; {without}") from error
    if url.project is None:
        raise ConfigError(f"{text[:200]!r} names no project, as {url.root}/p/digits would; {without}")
    return url


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


def reach_coordinator(
    url: CoordinatorUrl, clock: SystemClock, key: bytes | None, others: bool, timeout_s: float
) -> ProjectAccess | None:
    """The coordinator's answer, the clock corrected by its hint; None when it is down and there are `others` to ask.

    Raises CoordinatorUnreachable, UnknownProject, or ConfigError when it is not the coordinator of this key.
    """
    try:
        found = _fetch(url, timeout_s)
    except CoordinatorUnreachable as error:
        if not others:
            raise
        log.warning("%s; going on with the bootstrap peers alone", error)
        return None
    shown = found.access.coordinator_public_key
    if key is not None and shown != key.hex():
        raise ConfigError(f"the coordinator at {url.root} has the key {shown}, not coordinator_key={key.hex()}")
    found.correct(clock)
    return found.access


def wanted_project(project: str | Path | ProjectRecord | None, url: CoordinatorUrl | None) -> ProjectRecord | str:
    """The record that was given, or the id under which the DHT has it. Raises ConfigError."""
    if url is not None and url.project is not None:
        return url.project
    if isinstance(project, ProjectRecord):
        return project.check()
    if isinstance(project, Path) or (isinstance(project, str) and project.endswith(".toml")):
        return ProjectRecord.from_toml(Path(project))
    if not project:
        raise ConfigError("which project? Give project= its id, its record or its TOML file, or connect by its address")
    return project


def peer_cache_of(project: ProjectRecord | str, bootstrap: Sequence[str]) -> Path | None:
    """Where the swarm's peers are remembered for the next run; None for a swarm on this machine alone, which ends with
    it. Raises ConfigError when the data folder has no absolute path."""
    hosts = [host.strip("[]") for host, _, _ in (address.rpartition(":") for address in bootstrap)]
    if all(host == "localhost" or host == "::1" or host.startswith("127.") for host in hosts):
        return None
    name = quote(project if isinstance(project, str) else project.id, safe="")[:100]
    return data_folder() / "trainer" / f"{name}.peers.json"


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


def _fetch(url: CoordinatorUrl, timeout_s: float) -> Access:
    """On a loop of its own: the caller's thread may have one that runs."""
    thread = LoopThread("coordinator")
    try:
        return thread.submit(fetch_access(url, timeout_s)).result(timeout_s + GIVE_UP_S)
    except TimeoutError as error:
        raise CoordinatorUnreachable(f"{url.root} did not answer in {timeout_s:g} s") from error
    finally:
        thread.close(GIVE_UP_S)
