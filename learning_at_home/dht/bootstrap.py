"""Find the first peers: bootstrap addresses, tried in parallel, and again while they are not in the table. Async.

The peers that the last run knew (`remembered`) are tried with the first addresses, and again only while this peer is
alone. An address that has not answered is never given up: four nodes that start in the same second with one list may
at first find each other only in pairs, and it is the later tries that make one network of them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence

from learning_at_home.dht.contacts import Address, parse_address, shown_address
from learning_at_home.dht.protocol import DhtProtocol
from learning_at_home.errors import BootstrapFailed

log = logging.getLogger(__name__)

FIRST_RETRY_S = 0.3  # peers of one `docker compose up` start within a second of each other
MAX_RETRY_ALONE_S = 5.0
MAX_RETRY_S = 60.0  # with other peers at hand
MAX_ADDRESSES = 64

ITSELF = "is this node itself"


class Bootstrapper:
    """`on_joined` is awaited after a round in which someone answered: it makes us known to our own neighbourhood."""

    def __init__(
        self,
        protocol: DhtProtocol,
        family: socket.AddressFamily,
        on_joined: Callable[[], Awaitable[None]],
        remembered: Sequence[str] = (),
    ) -> None:
        self._protocol = protocol
        self._family = family
        self._on_joined = on_joined
        self._remembered = tuple(remembered)
        self._wanted: dict[str, Address | None] = {}  # as written -> where it answered
        self._own: set[str] = set()
        self._news = asyncio.Event()

    async def start(self, texts: Iterable[str]) -> None:
        """Try the first addresses and the remembered peers once. Raises ConfigError for what is no address."""
        await self._round([*self._note(texts), *self._remembered])

    async def try_all(self, texts: Iterable[str], *, require: bool = False) -> int:
        """How many answered. Raises ConfigError for what is no address, and BootstrapFailed if `require`, none did and
        no other peer is known."""
        problems = await self._round(self._note(texts))
        num_answered = sum(problem is None for problem in problems.values())
        if require and num_answered == 0 and not self._protocol.neighbourhood.contacts():
            listed = "; ".join(f"{text} {problem}" for text, problem in problems.items()) or "no address was given"
            raise BootstrapFailed(f"no bootstrap peer can be used: {listed}")
        return num_answered

    async def run(self) -> None:
        """Try the missing ones again and again; until cancelled."""
        delay_s = FIRST_RETRY_S
        while True:
            self._news.clear()
            try:
                async with asyncio.timeout(delay_s * random.uniform(0.8, 1.2)):
                    await self._news.wait()
                delay_s = FIRST_RETRY_S
            except TimeoutError:
                is_alone = not self._protocol.neighbourhood.contacts()
                await self._round([*self.unanswered(), *(self._remembered if is_alone else ())])
                most_s = MAX_RETRY_ALONE_S if is_alone else MAX_RETRY_S
                delay_s = min(2 * delay_s, most_s)

    def unanswered(self) -> tuple[str, ...]:
        """The addresses, as written, at which no contact of ours is now."""
        in_table = {contact.address for contact in self._protocol.neighbourhood.contacts()}
        return tuple(
            text for text, address in self._wanted.items() if address not in in_table and text not in self._own
        )

    def _note(self, texts: Iterable[str]) -> list[str]:
        texts = list(dict.fromkeys(texts))
        for text in texts:
            parse_address(text)
            if len(self._wanted) < MAX_ADDRESSES:
                self._wanted.setdefault(text, None)
        self._news.set()
        return texts

    async def _round(self, texts: Iterable[str]) -> dict[str, str | None]:
        """address -> what is wrong with it, or None when it answered."""
        texts = list(dict.fromkeys(texts))
        problems = dict(zip(texts, await asyncio.gather(*map(self._try, texts)), strict=True))
        if any(problem is None for problem in problems.values()):
            await self._on_joined()
        return problems

    async def _try(self, text: str) -> str | None:
        try:
            address = await self._resolve(*parse_address(text))
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that no DNS label can hold
            return f"cannot be resolved ({getattr(error, 'strerror', None) or error})"
        contact = await self._protocol.greet(address)
        if contact is None:
            return f"does not answer at {shown_address(address)}, UDP"
        if contact.node_id == self._protocol.node_id:
            self._own.add(text)
            return ITSELF
        if text in self._wanted:
            self._wanted[text] = address
        return None

    async def _resolve(self, host: str, port: int) -> Address:
        try:
            if ipaddress.ip_address(host).version == (6 if self._family == socket.AF_INET6 else 4):
                return host, port
        except ValueError:
            pass  # a name
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, family=self._family, type=socket.SOCK_DGRAM)
        return str(found[0][4][0]), port
