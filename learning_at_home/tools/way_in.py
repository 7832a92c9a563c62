"""How a tool visits the DHT: a client without a lasting key, by bootstrap peers or a coordinator. Async."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from learning_at_home.clock import SystemClock
from learning_at_home.coordinator_access import CoordinatorUrl, fetch_access
from learning_at_home.dht.contacts import parse_address
from learning_at_home.dht.node import DhtNode
from learning_at_home.errors import BootstrapFailed, ConfigError
from learning_at_home.identity import Identity
from learning_at_home.project import ProjectRecord


@dataclass(frozen=True, slots=True)
class WayIn:
    """Whom to ask first; the project where a coordinator told of it."""

    bootstrap: tuple[str, ...]
    project: ProjectRecord | None = None


async def find_way(coordinator: str | None, bootstrap: Sequence[str], clock: SystemClock, timeout_s: float) -> WayIn:
    """The bootstrap peers named, and those of the coordinator, whose time corrects the clock.

    Raises ConfigError when neither is given, CoordinatorUnreachable or UnknownProject.
    """
    if coordinator is None:
        if not bootstrap:
            raise ConfigError("whom to ask? Give --bootstrap HOST:PORT of a DHT peer, or --coordinator URL")
        return WayIn(tuple(bootstrap))
    found = await fetch_access(CoordinatorUrl.parse(coordinator), timeout_s)
    found.correct(clock)
    return WayIn((*bootstrap, *found.access.bootstrap), found.access.record)


@asynccontextmanager
async def visit(bootstrap: Sequence[str], clock: SystemClock, timeout_s: float) -> AsyncIterator[DhtNode]:
    """A peer that asks, holds nothing and is in nobody's table. Raises BootstrapFailed when no address answers."""
    node = DhtNode(Identity.generate(), wildcard_for(bootstrap), 0, clock=clock, client_only=True)
    async with node:
        try:
            async with asyncio.timeout(timeout_s):
                await node.bootstrap(bootstrap, require=True)
        except TimeoutError:
            raise BootstrapFailed(
                f"no bootstrap peer answered within {timeout_s:g} s: {', '.join(bootstrap)}"
            ) from None
        yield node


def wildcard_for(addresses: Iterable[str]) -> str:
    """What to bind so that these can be asked: IPv6 when all of them are IPv6 numbers. Raises ConfigError."""
    hosts = [parse_address(text)[0] for text in addresses]
    return "::" if hosts and all(map(_is_v6, hosts)) else "0.0.0.0"  # noqa: S104 - it must ask anybody


def _is_v6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False
