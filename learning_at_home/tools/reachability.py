"""Whether a node's two ports can be opened here, and whether others reach them. Async.

The coordinator is asked to knock: it brings a token to ports of the address that it sees us at, from sockets that we
have never written to, so that no router lets it in as an answer. What arrives, we see ourselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import msgspec

from learning_at_home.coordinator_access import CoordinatorUrl, is_loopback
from learning_at_home.coordinator_messages import Knocking
from learning_at_home.text import printable
from learning_at_home.tools.checks import Check, failed, ok, on_a_thread, warning
from learning_at_home.version import AGENT

ASK_TIMEOUT_S = 3.0
KNOCK_TIMEOUT_S = 2.5  # after the coordinator said that it knocks
MAX_ANSWER_BYTES = 10_000
ANY_V4, ANY_V6 = "0.0.0.0", "::"  # noqa: S104 - a node is there to be reached


@dataclass(slots=True)
class Door:
    """One port. `problem`: why it could not be opened."""

    kind: str  # TCP or UDP
    flag: str
    purpose: str
    wanted_port: int  # 0: any
    port: int = 0
    is_v6: bool = False
    problem: str = ""
    taken: bool = False
    knocked: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        return f"{self.kind} port"


@asynccontextmanager
async def open_doors(host: str, tcp_port: int, udp_port: int, token: str) -> AsyncIterator[tuple[Door, Door]]:
    """The node's ports, opened for the time of the context; a knock with the token is noted."""
    tcp = Door("TCP", "--port", "expert calls", tcp_port)
    udp = Door("UDP", "--dht-port", "the DHT", udp_port)
    async with contextlib.AsyncExitStack() as stack:
        with _noting_problems(tcp):
            server = await asyncio.start_server(_tcp_guest(tcp, token), host or None, tcp_port)
            stack.callback(server.close)
            tcp.port, tcp.is_v6 = server.sockets[0].getsockname()[1], ":" in server.sockets[0].getsockname()[0]
        with _noting_problems(udp):
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_datagram_endpoint(lambda: _UdpGuest(udp, token), (host, udp_port))
            stack.callback(transport.close)
            udp.port, udp.is_v6 = (
                transport.get_extra_info("sockname")[1],
                ":" in transport.get_extra_info("sockname")[0],
            )
        yield tcp, udp


def check_port(door: Door) -> Check:
    """Whether it could be opened."""
    if not door.problem:
        chosen = f"{door.kind} {door.port}" if door.wanted_port else f"any free {door.kind} port"
        return ok(door.name, f"{chosen} can be opened for {door.purpose}")
    seen = f"{door.kind} {door.wanted_port} cannot be opened for {door.purpose}: {door.problem}"
    if door.taken:
        return failed(door.name, seen, f"if that is not your running node: stop it, or choose another by {door.flag}")
    return failed(door.name, seen, f"choose another by {door.flag}, or an address of this machine by --host")


async def check_reachability(
    doors: tuple[Door, Door], url: CoordinatorUrl | None, answers: bool, token: str
) -> list[Check]:
    """Whether a coordinator that answers reaches these ports; where that cannot be known, it is said."""
    if url is None:
        return [
            _not_known(each, "only a coordinator can try it, none was given", "add --coordinator") for each in doors
        ]
    if not answers:
        return [_not_known(each, "the coordinator does not answer", "see its own check first") for each in doors]
    address, problem = await ask_for_knock(url, token, doors[0].port, doors[1].port)
    if problem:
        why = f"the coordinator was asked to try, and did not ({problem})"
        return [_not_known(each, why, "try again in a moment; is the coordinator older than this?") for each in doors]
    await asyncio.gather(*(_wait(each) for each in doors if each.port))
    return [judge_knock(each, address) for each in doors]


def judge_knock(door: Door, address: str) -> Check:
    """Of a coordinator that knocks at this address."""
    name = f"{door.kind} reached"
    if not door.port:
        return _not_known(door, "the port could not be opened, so nothing could be tried there", "see its own check")
    if (":" in address) != door.is_v6:
        seen, here = ("IPv4", "IPv6") if door.is_v6 else ("IPv6", "IPv4")
        why = f"the coordinator sees this machine by {seen}, and the port is open for {here} only"
        return _not_known(door, why, f"try it by --host {ANY_V4 if door.is_v6 else ANY_V6}")
    where = f"[{address}]" if ":" in address else address
    if door.knocked.is_set():
        seen = f"the coordinator reaches {where}:{door.port}"
        if ipaddress.ip_address(address).is_global:
            return ok(name, seen)
        return ok(name, f"{seen}, an address of this machine or its own network; of others nothing is known")
    seen = f"the coordinator knocked at {where}:{door.port}, and nothing arrived"
    which = f"{door.kind} port {door.port}" if door.wanted_port else f"a fixed {door.kind} port, chosen by {door.flag},"
    fix = f"to run a node, forward {which} to this machine in the router, and let it in through the firewall"
    return failed(name, seen, fix) if door.wanted_port else warning(name, seen, f"{fix}; trainers need not be reached")


async def ask_for_knock(url: CoordinatorUrl, token: str, tcp_port: int, udp_port: int) -> tuple[str, str]:
    """The address at which the coordinator knocks, or else why it does not."""
    ports = {name: port for name, port in (("tcp_port", tcp_port), ("udp_port", udp_port)) if port}
    # On a thread: certificates take a while to load, and round trips are being measured on this loop.
    verify = await on_a_thread(httpx.create_ssl_context) if url.root.startswith("https:") else False
    direct = httpx.AsyncHTTPTransport(verify=verify) if is_loopback(url.root) else None  # no proxy leads there
    try:
        async with (
            asyncio.timeout(ASK_TIMEOUT_S),
            httpx.AsyncClient(transport=direct, verify=verify, timeout=None) as client,  # noqa: S113 - the deadline above
            client.stream(
                "POST",
                f"{url.root}/api/v1/knock",
                params={"token": token, **ports},
                headers={"user-agent": AGENT, "accept-encoding": "identity"},
            ) as response,
        ):
            body = bytearray()
            async for part in response.aiter_raw():
                body += part
                if len(body) > MAX_ANSWER_BYTES:
                    return "", "its answer is no coordinator's"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return "", printable(str(error)) or type(error).__name__
    except TimeoutError:
        return "", "no answer in time"
    if response.has_redirect_location:
        return "", f"it leads to {printable(response.headers['location'])}: give the address that it leads to"
    if response.status_code != httpx.codes.OK:
        return "", f"status {response.status_code}: {printable(bytes(body[:200]).decode(errors='replace'))}"
    try:
        address = msgspec.json.decode(bytes(body), type=Knocking).address
        return str(ipaddress.ip_address(address)), ""
    except ValueError:
        return "", "its answer is no coordinator's"


def _not_known(door: Door, why: str, fix: str) -> Check:
    return warning(f"{door.kind} reached", f"not known whether others reach this machine: {why}", fix)


async def _wait(door: Door) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(KNOCK_TIMEOUT_S):
            await door.knocked.wait()


@contextlib.contextmanager
def _noting_problems(door: Door) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        door.taken = error.errno == errno.EADDRINUSE
        known = error.errno is not None and not isinstance(error, socket.gaierror)
        door.problem = os.strerror(error.errno) if known and error.errno else str(error.strerror or error)


def _tcp_guest(door: Door, token: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(KNOCK_TIMEOUT_S):
                if await reader.readexactly(len(token)) == token.encode():
                    door.knocked.set()
        writer.close()

    return receive


class _UdpGuest(asyncio.DatagramProtocol):
    def __init__(self, door: Door, token: str) -> None:
        self._door = door
        self._token = token.encode()

    def datagram_received(self, data: bytes, addr: object) -> None:
        if data == self._token:
            self._door.knocked.set()
