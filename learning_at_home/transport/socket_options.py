"""How every socket of ours is set up: CURVE on, bounds on, nothing that sends again behind our back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import zmq

from learning_at_home.identity import Identity, curve_public_key, z85
from learning_at_home.wire.messages import CHUNK_BYTES

SEND_QUEUE_MESSAGES = 256  # per peer; what does not fit is refused to the sender at once (EAGAIN)
RECEIVE_QUEUE_MESSAGES = 256
HANDSHAKE_MS = 5_000
POLLIN = int(zmq.POLLIN)  # as a plain number: the enums cost as much as the call
NOBLOCK = int(zmq.NOBLOCK)
MORE_NOBLOCK = int(zmq.NOBLOCK | zmq.SNDMORE)
RACK_BUFFER_BYTES = 256 * 1024  # what lies between two sockets is still in a core's cache
HEARTBEAT_MS = 5_000  # finds a peer whose machine vanished without closing its connection
HEARTBEAT_TIMEOUT_MS = 20_000

# What of the sockets and descriptors, each with the events that it is watched for, is ready within so many ms.
poll: Callable[[Sequence[tuple[Any, int]], int], list[tuple[Any, int]]] = zmq.zmq_poll


def bound(socket: zmq.Socket[bytes], chunk_bytes: int = CHUNK_BYTES) -> None:
    """Bounds and time limits that both sides share."""
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, SEND_QUEUE_MESSAGES)
    socket.setsockopt(zmq.RCVHWM, RECEIVE_QUEUE_MESSAGES)
    socket.setsockopt(zmq.MAXMSGSIZE, chunk_bytes + 1_024)  # of one frame, with what CURVE adds; headers are smaller
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.IPV6, 1)


def secure_caller(socket: zmq.Socket[bytes], identity: Identity, server_public_key: bytes) -> None:
    """Encrypt, show our key, and accept only the peer that holds `server_public_key` (Ed25519)."""
    socket.setsockopt(zmq.CURVE_PUBLICKEY, z85(identity.curve_public))
    socket.setsockopt(zmq.CURVE_SECRETKEY, z85(identity.curve_secret))
    socket.setsockopt(zmq.CURVE_SERVERKEY, z85(curve_public_key(server_public_key)))


def secure_server(socket: zmq.Socket[bytes], identity: Identity | None) -> None:
    """Accept only encrypted connections, of which ZAP tells whose they are; without an identity unencrypted ones."""
    if identity is None:
        without_encryption(socket)
        return
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, z85(identity.curve_secret))
    socket.setsockopt(zmq.ZAP_DOMAIN, b"learning-at-home")


def without_encryption(socket: zmq.Socket[bytes]) -> None:
    """For machines in one rack: buffers of the operating system that are small and stay so.

    Left to itself, it lets them grow to what a long way with many bytes under way needs, at a fifth of the speed here.
    With a round trip of 0.1 ms these hold 2.5 GB/s.
    """
    socket.setsockopt(zmq.SNDBUF, RACK_BUFFER_BYTES)
    socket.setsockopt(zmq.RCVBUF, RACK_BUFFER_BYTES)


def plain_send(socket: zmq.Socket[bytes]) -> Callable[..., zmq.MessageTracker | None]:
    """`send(data, flags, copy, track)` without the layer of Python that looks after other kinds of sockets."""
    send: Callable[..., zmq.MessageTracker | None] = super(zmq.Socket, socket).send
    return send


def has_input(socket: zmq.Socket[bytes]) -> bool:
    """Whether a message can be read. To ask costs less than half of the exception that an empty queue raises."""
    return bool(poll(((socket, POLLIN),), 0))
