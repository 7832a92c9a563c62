"""UDP between many peers of one process: latency, loss, silence and NAT, drawn from a seed. For a VirtualTimeLoop.

A datagram is lost, or arrives once, after its way's latency; those of one way may overtake each other. Nobody at an
address, a silent peer and a closed gate look the same: nothing comes back. One that real networks would take apart goes
nowhere, and the run fails by it at its end: no peer of ours may send it.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import random
import socket
from typing import Any

from learning_at_home.dht.datagrams import MAX_DATAGRAM_BYTES

Address = tuple[str, int]
NAT_LIFE_S = 30.0  # how long a gate stays open behind a datagram that left; common routers give 30 s to UDP


class SimulatedNetwork:
    """Every peer has an address of its own; see `next_ip`."""

    def __init__(self, *, one_way_s: float = 0.05, jitter: float = 0.1, loss: float = 0.0, seed: int = 0) -> None:
        """`jitter`: the share of `one_way_s` by which each datagram's way is longer or shorter, uniformly."""
        self.one_way_s = one_way_s
        self.jitter = jitter
        self.loss = loss
        self.random = random.Random(seed)
        self.num_sent = 0
        self.bytes_sent = 0
        self.largest_bytes = 0
        self._sockets: dict[Address, SimulatedTransport] = {}
        self._silent: set[str] = set()
        self._gates: dict[str, dict[Address, float]] = {}  # by ip of who is behind: whom it sent to, and when
        self._num_ips = 0

    def next_ip(self) -> str:
        """A public IPv4 address that nobody has; the first 65,536 are each in a /24 of their own."""
        self._num_ips += 1
        low, high = self._num_ips % 65_536, self._num_ips // 65_536
        first = ipaddress.IPv4Address("20.0.0.1")
        return str(first + (low << 8) + (high << 24))

    def silence(self, ip: str) -> None:
        """Whoever is there is dead or cut off: its socket stays open and nothing comes out or in."""
        self._silent.add(ip)

    def restore(self, ip: str) -> None:
        """It is heard again, with the state it had."""
        self._silent.discard(ip)

    def put_behind_nat(self, ip: str) -> None:
        """From now on it hears only whom it has sent something to in the last NAT_LIFE_S."""
        self._gates.setdefault(ip, {})

    def open(
        self, loop: asyncio.AbstractEventLoop, address: Address, protocol: asyncio.DatagramProtocol
    ) -> SimulatedTransport:
        """A bound socket; port 0: any free one. Raises OSError when the address is taken."""
        ip, port = address
        if not port:
            port = next(free for free in range(30_000, 65_536) if (ip, free) not in self._sockets)
        if (ip, port) in self._sockets:
            raise OSError(errno.EADDRINUSE, "address already in use")
        transport = SimulatedTransport(self, loop, (ip, port), protocol)
        self._sockets[ip, port] = transport
        loop.call_soon(protocol.connection_made, transport)
        return transport

    def close(self, address: Address) -> None:
        self._sockets.pop(address, None)

    def check(self) -> None:
        """Raises AssertionError when anybody sent a datagram that is too long."""
        assert self.largest_bytes <= MAX_DATAGRAM_BYTES, f"a peer sent a datagram of {self.largest_bytes:,} bytes"

    def send(self, loop: asyncio.AbstractEventLoop, data: bytes, sender: Address, receiver: Address) -> None:
        """On its way, or lost."""
        self.num_sent += 1
        self.bytes_sent += len(data)
        self.largest_bytes = max(self.largest_bytes, len(data))
        gate = self._gates.get(sender[0])
        if gate is not None:
            gate[receiver] = loop.time()
        if (
            len(data) > MAX_DATAGRAM_BYTES
            or sender[0] in self._silent
            or (self.loss and self.random.random() < self.loss)
        ):
            return
        spread = self.jitter * (2 * self.random.random() - 1)
        loop.call_later(self.one_way_s * (1 + spread), self._arrive, loop, data, sender, receiver)

    def _arrive(self, loop: asyncio.AbstractEventLoop, data: bytes, sender: Address, receiver: Address) -> None:
        transport = self._sockets.get(receiver)
        if transport is None or receiver[0] in self._silent:
            return
        gate = self._gates.get(receiver[0])
        if gate is None or loop.time() - gate.get(sender, float("-inf")) <= NAT_LIFE_S:
            transport.protocol.datagram_received(data, sender)


class SimulatedTransport(asyncio.DatagramTransport):
    """One socket."""

    def __init__(
        self,
        network: SimulatedNetwork,
        loop: asyncio.AbstractEventLoop,
        address: Address,
        protocol: asyncio.DatagramProtocol,
    ) -> None:
        super().__init__({"socket": _Socket(address), "sockname": address})
        self.protocol = protocol
        self._network = network
        self._loop = loop
        self._address = address
        self._closing = False

    def sendto(self, data: Any, addr: Any = None) -> None:
        if not self._closing:
            self._network.send(self._loop, bytes(data), self._address, (addr[0], addr[1]))

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._network.close(self._address)
            self._loop.call_soon(self.protocol.connection_lost, None)

    abort = close


class _Socket:
    """What is asked of the socket behind a transport."""

    def __init__(self, address: Address) -> None:
        self.family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._address = address

    def getsockname(self) -> Address:
        return self._address

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """Buffers are endless here."""
