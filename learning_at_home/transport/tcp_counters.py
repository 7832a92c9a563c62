"""What the kernel knows of TCP connections whose descriptors belong to libzmq: bytes received, whose they are.

Nothing here keeps a copy of a descriptor: one that is held would keep libzmq's close() from ending the connection. To
act on a connection its descriptor is copied for some microseconds, onto a number that was reserved, and its cookie (the
kernel's number of this one socket) compared: a descriptor's number alone may have passed to another connection.
Works on Linux; other systems may import it and are told that it does not.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import socket as sockets
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

if sys.platform != "win32":
    import fcntl
    import termios

_SO_COOKIE = 57  # Linux 4.12; the socket module does not name it
_BYTES_RECEIVED = 128  # offset of tcpi_bytes_received in struct tcp_info of linux/tcp.h; Linux 4.1
_INFO_BYTES = _BYTES_RECEIVED + 8
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, for 0 seconds


@dataclass(frozen=True, slots=True)
class TcpConnection:
    """One TCP connection of this process."""

    descriptor: int
    cookie: int
    local_port: int
    peer_host: str


class TcpCounters:
    """Reads counters by descriptor. For one thread; whoever made it closes it."""

    def __init__(self) -> None:
        self._getsockopt = ctypes.PyDLL(None).getsockopt  # keeps the interpreter lock: half a microsecond
        self._info = ctypes.create_string_buffer(_INFO_BYTES)
        self._received = ctypes.c_uint64.from_buffer(self._info, _BYTES_RECEIVED)
        self._size = ctypes.c_uint(_INFO_BYTES)
        self._arguments = (
            sockets.IPPROTO_TCP,
            sockets.TCP_INFO,
            ctypes.c_void_p(ctypes.addressof(self._info)),
            ctypes.c_void_p(ctypes.addressof(self._size)),
        )
        self._unread = bytearray(4)
        self._nothing = sockets.socket(sockets.AF_UNIX)
        # Said to be IPv6 so that there is room for addresses of both families; it need not exist here.
        self._copy = sockets.socket(sockets.AF_INET6, sockets.SOCK_STREAM, 0, fileno=os.dup(self._nothing.fileno()))

    def close(self) -> None:
        self._copy.close()
        self._nothing.close()

    def received_bytes(self, descriptor: int) -> int | None:
        """All that came on this connection, what nobody has read yet included; None when it has ended."""
        if self._getsockopt(descriptor, *self._arguments):
            return None
        return self._received.value

    def unread_bytes(self, descriptor: int) -> int:
        """How much of it waits in the kernel."""
        try:
            fcntl.ioctl(descriptor, termios.FIONREAD, self._unread)
        except OSError:
            return 0
        return int.from_bytes(self._unread, sys.byteorder)

    def find(self, descriptor: int) -> TcpConnection | None:
        """The TCP connection behind a descriptor; None when it has ended."""
        with contextlib.suppress(OSError), self._copied(descriptor) as copy:
            here = copy.getsockname()
            if isinstance(here, tuple):  # of a socket within this machine it is a name
                return TcpConnection(descriptor, self._cookie(), here[1], copy.getpeername()[0])
        return None

    def is_open(self, connection: TcpConnection) -> bool:
        """Whether the descriptor still is this connection's."""
        with contextlib.suppress(OSError), self._copied(connection.descriptor):
            return self._cookie() == connection.cookie
        return False

    def shut_down(self, connection: TcpConnection) -> bool:
        """End a connection under its owner's hands, as if the peer had left; False when it has ended already.

        Its owner reads an end and closes; to the peer that close is a reset, else one that only sends would wait for
        a minute before it hears of it.
        """
        with contextlib.suppress(OSError), self._copied(connection.descriptor) as copy:
            if self._cookie() == connection.cookie:
                copy.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, _RESET_AT_CLOSE)
                copy.shutdown(sockets.SHUT_RDWR)
                return True
        return False

    def _cookie(self) -> int:
        return int.from_bytes(self._copy.getsockopt(sockets.SOL_SOCKET, _SO_COOKIE, 8), sys.byteorder)

    @contextlib.contextmanager
    def _copied(self, descriptor: int) -> Iterator[sockets.socket]:
        # dup2 onto our own number needs no free descriptor: it works for a process that was driven to its limit
        os.dup2(descriptor, self._copy.fileno(), inheritable=False)
        try:
            yield self._copy
        finally:
            os.dup2(self._nothing.fileno(), self._copy.fileno(), inheritable=False)


def counts_received_bytes() -> bool:
    """Whether this system counts what arrives; tried on a real connection, as some know the call and say 0."""
    if sys.platform != "linux":
        return False
    counters = TcpCounters()
    try:
        with (
            sockets.create_server(("127.0.0.1", 0)) as listener,
            sockets.create_connection(listener.getsockname()) as near,
        ):
            far, _ = listener.accept()
            with far:
                near.sendall(b"counted")
                far.recv(7)
                known = counters.find(far.fileno())
                return counters.received_bytes(far.fileno()) == 7 and known is not None and counters.is_open(known)
    except OSError:
        return False
    finally:
        counters.close()


def neighbourhood(host: str) -> str:
    """The network that one party is likely to hold addresses of: an IPv4 address, or an IPv6 network of 64 bits."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.IPv6Network((address, 64), strict=False))
        address = address.ipv4_mapped
    return str(address)
