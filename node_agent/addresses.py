"""Under which host a node can be reached by the others, as far as it can tell by itself.

Opens no connection. Announcements carry numbers: nobody who reads one looks up a stranger's name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence

from learning_at_home.errors import ConfigError
from learning_at_home.own_address import ANYWHERE, WILDCARDS, route_to
from learning_at_home.peer_address import PLAIN_SCHEME


def announced_host(bind_host: str, your_address: str | None, bootstrap: Sequence[str]) -> str:
    """The host to announce: where we are bound, else as the coordinator sees us, else what leads to the peers.

    A coordinator on this machine sees us at a loopback address: that is believed only while all peers are on this
    machine.
    """
    if bind_host not in WILDCARDS:
        return bind_host
    hosts = [address.rpartition(":")[0].strip("[]") for address in bootstrap]
    seen = (your_address or "").removeprefix("::ffff:")
    reachable = bool(seen) and (":" not in seen or bind_host == "::")
    if reachable and (not is_loopback(seen) or all(map(is_loopback, hosts))):
        return seen
    for host, address in zip(hosts, bootstrap, strict=True):
        if not is_loopback(host) and (ours := route_to(host, int(address.rpartition(":")[2]))):
            return ours
    if hosts:
        return "127.0.0.1"
    return route_to(*ANYWHERE) or "127.0.0.1"


async def numeric(host: str) -> str:
    """The address that a name stands for now, IPv4 where there is one. Raises ConfigError when it has none."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"no address is known for the host {host[:80]!r}: {error}") from error
    addresses = [str(address[0]).partition("%")[0] for _, _, _, _, address in found]
    return min(addresses, key=lambda address: ":" in address)


def endpoint(host: str, port: int, unencrypted: bool = False) -> str:
    """As announcements carry it."""
    scheme = PLAIN_SCHEME if unencrypted else "tcp://"
    return f"{scheme}[{host}]:{port}" if ":" in host else f"{scheme}{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself, by its name or number alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
