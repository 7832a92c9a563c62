"""One caller's connection to one node: a DEALER socket, its greeting, and what ZeroMQ's monitor says of it.

Synchronous, used by one thread at a time. libzmq would reconnect and send again what was queued, which could apply a
backward long after its caller gave up; so reconnecting is off, and a lost link is closed and replaced by a new one.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence

import zmq
from zmq.utils.monitor import parse_monitor_message

from learning_at_home.errors import PeerUnreachable, WireError
from learning_at_home.identity import Identity
from learning_at_home.peer_address import PLAIN_SCHEME, PeerAddress
from learning_at_home.transport.socket_options import (
    MORE_NOBLOCK,
    NOBLOCK,
    POLLIN,
    bound,
    has_input,
    plain_send,
    secure_caller,
    without_encryption,
)
from learning_at_home.wire.framing import decode_node, encode
from learning_at_home.wire.messages import (
    CHUNK_BYTES,
    PLAIN_CHUNK_BYTES,
    PROTOCOL_VERSIONS,
    Greeting,
    NodeMessage,
    Request,
    Welcome,
)

_WATCHED = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_REASONS = {
    zmq.EVENT_DISCONNECTED: "the connection was lost",
    zmq.EVENT_CLOSED: "the connection was refused",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "the node does not hold the key that its announcement names",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "it does not speak encrypted ZeroMQ",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "the encrypted handshake failed",
}
ZERO_COPY_BYTES = 32 * 1024  # below this a copy is cheaper than the bookkeeping of a shared buffer
MAX_ANSWER_FRAMES = 1_024  # 16 tensors of 64 MiB
ROUTING_ID_BYTES = 15  # with the one before them as long as a key of 128 bits


class Link:
    """A socket to one peer. The first message is our greeting; requests follow it without waiting for the welcome."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        identity: Identity,
        peer: PeerAddress,
        agent: str,
        endpoint: str,
    ) -> None:
        """`endpoint`: one of the peer's `usable_endpoints`. Raises PeerUnreachable."""
        self.peer = peer
        self.endpoint = endpoint
        self.welcomed = False
        self.chunk_bytes = chunk_bytes_of(peer)
        with contextlib.ExitStack() as opened:
            try:
                self.socket = opened.enter_context(context.socket(zmq.DEALER))
                bound(self.socket, self.chunk_bytes)
                self.socket.setsockopt(zmq.RECONNECT_IVL, -1)
                # A node lets a later connection with the same id take over: nobody must guess ours. None begins with 0.
                self.socket.setsockopt(zmq.ROUTING_ID, b"\1" + secrets.token_bytes(ROUTING_ID_BYTES))
                self.monitor = opened.enter_context(self.socket.get_monitor_socket(_WATCHED))
                opened.callback(self.socket.disable_monitor)
                if endpoint.startswith(PLAIN_SCHEME):
                    endpoint = "tcp://" + endpoint.removeprefix(PLAIN_SCHEME)
                    without_encryption(self.socket)
                else:
                    secure_caller(self.socket, identity, peer.public_key)
                self.socket.connect(endpoint)
                self.socket.send(encode(Greeting(PROTOCOL_VERSIONS, identity.public_key, agent)))
            except zmq.ZMQError as error:  # among them EMFILE: this process has no descriptor left
                raise PeerUnreachable(f"{list(peer.endpoints)}: {error}", peer=peer.name) from error
            self._send = plain_send(self.socket)
            self.poll_items = [(self.socket, POLLIN), (self.monitor, POLLIN)]  # for zmq_poll
            self._opened = opened.pop_all()
        self.used = self.begun = 0.0  # monotonic, kept by its user

    def send(self, request: Request, frames: Sequence[memoryview | bytes]) -> None:
        """Queue a request. Raises PeerUnreachable when the peer takes nothing any more (its queue is full)."""
        try:
            send = self._send
            send(encode(request), MORE_NOBLOCK if frames else NOBLOCK)
            left = len(frames)
            for frame in frames:
                left -= 1
                send(frame, MORE_NOBLOCK if left else NOBLOCK, len(frame) < ZERO_COPY_BYTES)
        except zmq.ZMQError as error:
            raise PeerUnreachable(f"nothing more can be sent: {error}", peer=self.peer.name) from error

    def receive(self) -> tuple[NodeMessage, list[zmq.Frame]] | None:
        """The next message that has arrived, or None. Raises WireError for one that no node may send us."""
        try:
            header = self.socket.recv(NOBLOCK, False)
        except zmq.Again:
            return None
        frames = []
        num_frames = 0
        part = header
        while part.more:  # a message arrives whole: none of these waits
            part = self.socket.recv(0, False)
            num_frames += 1
            if num_frames <= MAX_ANSWER_FRAMES:
                frames.append(part)
        if num_frames > MAX_ANSWER_FRAMES:
            raise WireError(f"an answer of {num_frames:,} frames", peer=self.peer.name)
        try:
            message = decode_node(header)
            if isinstance(message, Welcome):
                self._check(message)
        except WireError as error:
            raise WireError(error.message, peer=self.peer.name) from error
        return message, frames

    def _check(self, welcome: Welcome) -> None:
        first, last = PROTOCOL_VERSIONS
        if welcome.public_key != self.peer.public_key or not first <= welcome.version <= last:
            raise WireError(f"the node welcomes us as another peer or with version {welcome.version}")

    def lost(self) -> PeerUnreachable | None:
        """The reason why this link is dead, once it is."""
        while has_input(self.monitor):  # cheaper than the exception of an empty queue
            event = parse_monitor_message(self.monitor.recv_multipart(zmq.NOBLOCK))
            reason = _REASONS.get(zmq.Event(event["event"]))
            if reason is not None:
                return PeerUnreachable(f"{self.endpoint}: {reason}", peer=self.peer.name)
        return None

    def close(self) -> None:
        self._opened.close()


def chunk_bytes_of(peer: PeerAddress) -> int:
    """The size of frames in which a peer takes and gives tensors: it is encrypted where it has such an endpoint."""
    for endpoint in peer.endpoints:
        if endpoint.startswith("tcp://"):
            return CHUNK_BYTES
    return PLAIN_CHUNK_BYTES


def usable_endpoints(peer: PeerAddress, unencrypted: bool) -> list[str]:
    """Those that may be used, as the peer orders them: the encrypted ones, or else, if allowed, those without CURVE.

    Raises PeerUnreachable when there is none.
    """
    encrypted = [endpoint for endpoint in peer.endpoints if endpoint.startswith("tcp://")]
    if encrypted:
        return encrypted
    plain = [endpoint for endpoint in peer.endpoints if endpoint.startswith(PLAIN_SCHEME)]
    if plain and unencrypted:
        return plain
    if plain:
        raise PeerUnreachable(
            f"{plain[0]}: it takes unencrypted connections only, which need unencrypted=True on this side",
            peer=peer.name,
        )
    raise PeerUnreachable(f"it announces no tcp:// endpoint but {list(peer.endpoints)}", peer=peer.name)
