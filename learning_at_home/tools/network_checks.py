"""What `lah doctor` asks of others: the coordinator, the bootstrap peers, the time. Async.

Names are looked up here first, on threads that nobody waits for: a name server that is silent holds up nothing.
"""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from collections.abc import Sequence
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

from learning_at_home.clock import CLOCK_SKEW_TOLERATED_S, Clock
from learning_at_home.coordinator_access import Access, CoordinatorUrl, fetch_access, is_loopback
from learning_at_home.dht.contacts import parse_address, shown_address
from learning_at_home.dht.node import DhtNode
from learning_at_home.errors import BootstrapFailed, ConfigError, CoordinatorUnreachable, NetworkError, UnknownProject
from learning_at_home.identity import Identity
from learning_at_home.tools.checks import Check, failed, ok, on_a_thread, warning, within
from learning_at_home.tools.plain_text import counted, duration
from learning_at_home.tools.way_in import wildcard_for
from learning_at_home.version import AGENT

RESOLVE_TIMEOUT_S = 3.0
COORDINATOR_TIMEOUT_S = 4.0  # names included
PEER_TIMEOUT_S = 4.0  # names included; the DHT itself gives a peer up after a second
CLOCK_WARNING_S = CLOCK_SKEW_TOLERATED_S / 2
SET_CLOCK = "let the system set it: timedatectl set-ntp true, or your system's settings for date and time"


async def check_coordinator(url: CoordinatorUrl) -> tuple[Check, Access | None]:
    """Whether it answers for the project, and what it answered."""
    name, told = "coordinator", []

    async def ask() -> Check:
        host = urlsplit(url.root).hostname or ""
        if not is_loopback(url.root) and not urllib.request.getproxies():
            problem = await resolving_problem(host)
            if problem:
                return failed(name, f"{host} {problem}", "check the spelling of the address, and this machine's DNS")
        try:
            access = await fetch_access(url, COORDINATOR_TIMEOUT_S)
        except UnknownProject as error:
            return failed(name, error.message, f"choose one of the projects that {url.root}/ lists")
        except ConfigError as error:
            return failed(name, error.message, "add /p/PROJECT to the address")
        except CoordinatorUnreachable as error:
            return failed(name, error.message, f"open {url.root}/ in a browser; if it works there, look at the proxy")
        told.append(access)
        return judge_coordinator(access)

    late = failed(
        name,
        f"{url.root} did not answer within {duration(COORDINATOR_TIMEOUT_S)}",
        "is the coordinator running? Does a firewall hold back outgoing connections?",
    )
    check = await within(ask(), COORDINATOR_TIMEOUT_S, late)
    return check, told[0] if told else None


def judge_coordinator(access: Access) -> Check:
    """Of a coordinator that answered."""
    record, agent = access.access.record, access.access.agent
    words = [f"{access.url.root} answers", f"project {record.id}"]
    words += [
        counted(len(record.layers), "layer"),
        f"sees this machine at {access.access.your_address or 'no address'}",
    ]
    seen = ", ".join(words)
    if agent and series(agent) != series(AGENT):
        fix = "bring both to one version: pip install --upgrade learning-at-home, or tell the coordinator's owner"
        return warning("coordinator", f"{seen}; it runs {agent}, this machine {AGENT}", fix)
    return ok("coordinator", seen)


def series(agent: str) -> str:
    """The part of an agent's version within which nothing that peers agree on changes: "0.1" of ".../0.1.7"."""
    return ".".join(agent.rpartition("/")[2].split(".")[:2])


async def check_peers(addresses: Sequence[str], clock: Clock) -> tuple[list[Check], float | None]:
    """Each bootstrap peer, asked at the same time; and what this machine's clock lacks by theirs, if any answered."""
    async with AsyncExitStack() as stack:
        visitors: dict[str, DhtNode] = {}
        for host in {wildcard_for([address]) for address in addresses}:
            node = DhtNode(Identity.generate(), host, 0, clock=clock, client_only=True)
            visitors[host] = await stack.enter_async_context(node)
        checks = await asyncio.gather(*(_check_peer(each, visitors[wildcard_for([each])]) for each in addresses))
        offsets_s = [offset for node in visitors.values() if (offset := node.status().clock_offset_s) is not None]
    return list(checks), offsets_s[0] if offsets_s else None


async def _check_peer(text: str, visitor: DhtNode) -> Check:
    name = f"peer {text}"
    host, port = parse_address(text)
    family = socket.AF_INET6 if wildcard_for([text]) == "::" else socket.AF_INET

    async def ask() -> Check:
        try:
            ip = await resolve(host, family)
        except OSError as error:
            fix = "check the spelling of the name, and this machine's DNS"
            return failed(name, f"{host} cannot be resolved ({error.strerror or error})", fix)
        address = shown_address((ip, port))
        try:
            async with asyncio.timeout(PEER_TIMEOUT_S / 2):  # it answers first, then its neighbours are asked
                await visitor.bootstrap([address], require=True)
        except (TimeoutError, BootstrapFailed, NetworkError):
            pass
        for known in visitor.neighbours():
            if known.address == address and not known.is_silent:
                measured = "" if known.round_trip_s is None else f" in {known.round_trip_s * 1000:.1f} ms"
                return ok(name, f"{address} answers{measured}, id {known.node_id.hex()[:12]}")
        return failed(
            name,
            f"nobody answers at {address}, UDP",
            f"is a peer running there? Do firewalls on the way let UDP port {port} through?",
        )

    late = failed(name, f"no answer within {duration(PEER_TIMEOUT_S)}", "check the name and this machine's DNS")
    return await within(ask(), PEER_TIMEOUT_S, late)


def check_clock(ahead_by_coordinator_s: float | None, ahead_by_peers_s: float | None) -> Check:
    """This machine's clock against others': positive where theirs are ahead."""
    sources = {"the coordinator": ahead_by_coordinator_s, "the DHT's peers": ahead_by_peers_s}
    known = {whose: ahead_s for whose, ahead_s in sources.items() if ahead_s is not None}
    if not known:
        return warning("clock", "nobody answered who could tell the time", "see the checks of coordinator and peers")
    seen = ", ".join(
        f"{_apart(ahead_s)} {whose}'{'' if whose.endswith('s') else 's'}" for whose, ahead_s in known.items()
    )
    worst_s = max(map(abs, known.values()))
    limit = f"{CLOCK_SKEW_TOLERATED_S:g} s are tolerated"
    if worst_s > CLOCK_SKEW_TOLERATED_S:
        return failed("clock", f"{seen}; {limit}: others refuse this machine's records", SET_CLOCK)
    if worst_s > CLOCK_WARNING_S:
        return warning("clock", f"{seen}; {limit}", SET_CLOCK)
    return ok("clock", f"{seen}; {limit}")


def _apart(ahead_s: float) -> str:
    if abs(ahead_s) < 0.1:
        return "within 0.1 s of"
    return f"{abs(ahead_s):.1f} s {'behind' if ahead_s > 0 else 'ahead of'}"


async def resolving_problem(host: str) -> str:
    """Empty when the name has an address."""
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            await resolve(host, socket.AF_UNSPEC)
    except TimeoutError:
        return f"is not resolved within {duration(RESOLVE_TIMEOUT_S)}"
    except (OSError, UnicodeError) as error:
        return f"cannot be resolved ({getattr(error, 'strerror', None) or error})"
    return ""


async def resolve(host: str, family: socket.AddressFamily) -> str:
    """An address of the name, as a number. Raises OSError."""
    try:
        found = await on_a_thread(lambda: socket.getaddrinfo(host, None, family, socket.SOCK_DGRAM))
    except UnicodeError as error:  # a name that no DNS label can hold
        raise OSError(str(error)) from error
    return str(found[0][4][0])
