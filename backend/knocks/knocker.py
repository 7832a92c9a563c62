"""Knock at ports of those who ask for it, at their own address only. Async.

The caller learns nothing here of what became of a knock: it sees for itself what arrives, and nobody can use the
coordinator to look into a network that it stands in. A knock is one connection, and three datagrams of 32 bytes from a
socket that the caller has never written to: what comes through a router so comes from anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict

from backend.live.token_bucket import TokenBucket
from learning_at_home.errors import NodeOverloaded

PER_SECOND, BURST = 0.1, 5.0  # of one address: a person who tries a router's settings
MAX_ADDRESSES = 4_096
MAX_AT_ONCE = 32
CONNECT_TIMEOUT_S = 3.0
DATAGRAMS, DATAGRAM_PAUSE_S = 3, 0.1  # one may be lost


class Knocker:
    """Bounded per address and in all."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()
        self._num_waiting = 0

    def admit(self, address: str, now: float) -> None:
        """Count a wish. Raises NodeOverloaded when this address, or everybody together, wished for too many."""
        bucket = self._buckets.setdefault(address, TokenBucket(PER_SECOND, BURST))
        self._buckets.move_to_end(address)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        if self._num_waiting >= MAX_AT_ONCE or not bucket.take(now):
            raise NodeOverloaded("too many knocks were asked for; try again in a moment", retry_after_s=1 / PER_SECOND)

    async def knock(self, address: str, token: str, tcp_port: int | None, udp_port: int | None) -> None:
        """Never raises for what the other side does."""
        self._num_waiting += 1
        try:
            await asyncio.gather(
                *[_connect(address, port, token) for port in (tcp_port,) if port is not None],
                *[_send(address, port, token) for port in (udp_port,) if port is not None],
            )
        finally:
            self._num_waiting -= 1


async def _connect(address: str, port: int, token: str) -> None:
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(address, port)
            try:
                writer.write(token.encode())
                await writer.drain()
            finally:
                writer.close()


async def _send(address: str, port: int, token: str) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=(address, port))
        try:
            for _ in range(DATAGRAMS):
                transport.sendto(token.encode())
                await asyncio.sleep(DATAGRAM_PAUSE_S)
        finally:
            transport.close()
