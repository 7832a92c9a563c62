"""`lah dht run`: a peer that others bootstrap from. Async.

It holds records for others and knows the way; it serves no experts and belongs to no project. Its key is kept, so that
it has the same place in the DHT after a restart.
"""

from __future__ import annotations

import asyncio
import ipaddress
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from learning_at_home.dht.contacts import shown_address
from learning_at_home.dht.node import DhtNode, DhtStatus
from learning_at_home.directory.slot_rule import AnnouncementSlots
from learning_at_home.identity import Identity
from learning_at_home.own_address import ANYWHERE, WILDCARDS, route_to
from learning_at_home.parent_watch import exit_when_stdin_closes
from learning_at_home.peer_folder import open_peer_folder
from learning_at_home.tools.plain_text import counted, duration, size

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a person decides about a bootstrap peer."""

    folder: Path
    host: str
    port: int
    bootstrap: tuple[str, ...]
    announce_host: str | None
    report_every_s: float
    exit_with_parent: bool


async def run_peer(options: RunOptions, say: Say) -> None:
    """Serve until SIGINT, SIGTERM or the end of the parent. Raises ConfigError when it cannot listen or has no key."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    if options.exit_with_parent:

        def stop() -> None:
            loop.call_soon_threadsafe(stopping.set)

        exit_when_stdin_closes(stop)
    with open_peer_folder(options.folder, "dht") as identity:
        async with DhtNode(
            identity,
            options.host,
            options.port,
            bootstrap=options.bootstrap,
            slot_rule=AnnouncementSlots(),
            peer_cache=options.folder / "dht.peers.json",
        ) as node:
            for line in introduction(identity, options, node.port):
                say(line)
            if options.bootstrap or node.num_peers:  # also those of the peer cache
                silent = _silent(node.status())
                say(f"joined: {counted(node.num_peers, 'peer')}; bootstrap addresses without an answer: {silent}")
            while not await _is_over(stopping, options.report_every_s):
                say(report(node.status()))
    say("left the DHT")


def introduction(identity: Identity, options: RunOptions, port: int) -> list[str]:
    """Who this peer is, and what others type to join by it."""
    host = options.announce_host or options.host
    if host in WILDCARDS:
        host = route_to(*ANYWHERE) or "127.0.0.1"
    lines = [
        f"DHT peer {identity.name}, id {identity.peer_id.hex()}, key in {options.folder / 'dht.key'}",
        f"others join with: --bootstrap {shown_address((host, port))}",
    ]
    if _is_private(host):
        lines.append(
            f"{host} is an address of this machine or its own network: peers elsewhere need the public one,"
            f" and UDP port {port} forwarded to this machine"
        )
    return lines


def report(status: DhtStatus) -> str:
    """One line on how it goes."""
    refused = ", ".join(f"{count} {reason}" for reason, count in sorted(status.refusals.items())) or "none"
    words = [
        counted(status.num_peers, "peer"),
        f"{counted(status.num_records, 'record')} ({size(status.num_bytes)})",
        f"refused: {refused}",
        counted(status.bad_datagrams, "bad datagram"),
        counted(status.timeouts, "timeout"),
    ]
    if status.unanswered_bootstrap:
        words.append(f"no answer from {_silent(status)}")
    if status.clock_offset_s is not None and abs(status.clock_offset_s) >= 1:
        words.append(f"this clock is {duration(abs(status.clock_offset_s))} {_way(status.clock_offset_s)}")
    return "; ".join(words)


async def _is_over(stopping: asyncio.Event, wait_s: float) -> bool:
    try:
        async with asyncio.timeout(wait_s):
            return await stopping.wait()
    except TimeoutError:
        return False


def _silent(status: DhtStatus) -> str:
    return ", ".join(status.unanswered_bootstrap) or "none"


def _way(offset_s: float) -> str:
    return "behind its peers'" if offset_s > 0 else "ahead of its peers'"


def _is_private(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host == "localhost"
