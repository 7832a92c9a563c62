"""One caller's connection to one node: a DEALER socket, its greeting, and what ZeroMQ's monitor says of it.

Synchronous, used by one thread at a time. libzmq would reconnect and send again what was queued, which could apply a
backward long after its caller gave up; so reconnecting is off, and a lost link is closed and replaced by a new one.
"""

from __future__ import annotations

import contextlib

import zmq
from zmq.utils.monitor import parse_monitor_message

from learning_at_home.errors import PeerUnreachable, WireError
from learning_at_home.identity import Identity
from learning_at_home.peer_address import PeerAddress
from learning_at_home.transport.socket_options import bound, secure_caller
from learning_at_home.wire.framing import decode_node, encode
from learning_at_home.wire.messages import PROTOCOL_VERSIONS, Failure, Greeting, Reply, Request, Welcome

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


class Link:
    """A socket to one peer. The first message is our greeting; requests follow it without waiting for the welcome."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], identity: Identity, peer: PeerAddress, agent: str
    ) -> None:
        self.peer = peer
        with contextlib.ExitStack() as opened:
            try:
                self.socket = opened.enter_context(context.socket(zmq.DEALER))
                bound(self.socket)
                self.socket.setsockopt(zmq.RECONNECT_IVL, -1)
                self._monitor = opened.enter_context(self.socket.get_monitor_socket(_WATCHED))
                opened.callback(self.socket.disable_monitor)
                secure_caller(self.socket, identity, peer.public_key)
                self.socket.connect(self._endpoint())
                self.socket.send(encode(Greeting(PROTOCOL_VERSIONS, identity.public_key, agent)))
            except zmq.ZMQError as error:  # among them EMFILE: this process has no descriptor left
                raise PeerUnreachable(f"{list(peer.endpoints)}: {error}", peer=peer.name) from error
            self._opened = opened.pop_all()

    def _endpoint(self) -> str:
        for endpoint in self.peer.endpoints:
            if endpoint.startswith("tcp://"):
                return endpoint
        raise PeerUnreachable(f"it announces no tcp:// endpoint but {list(self.peer.endpoints)}", peer=self.peer.name)

    def send(self, request: Request, frames: list[memoryview | bytes]) -> None:
        """Queue a request. Raises PeerUnreachable when the peer takes nothing any more (its queue is full)."""
        try:
            header = encode(request)
            if not frames:
                self.socket.send(header, zmq.NOBLOCK)
                return
            self.socket.send(header, zmq.NOBLOCK | zmq.SNDMORE)
            for frame in frames[:-1]:
                self.socket.send(frame, zmq.NOBLOCK | zmq.SNDMORE, copy=len(frame) < ZERO_COPY_BYTES)
            self.socket.send(frames[-1], zmq.NOBLOCK, copy=len(frames[-1]) < ZERO_COPY_BYTES)
        except zmq.ZMQError as error:
            raise PeerUnreachable(f"nothing more can be sent: {error}", peer=self.peer.name) from error

    def receive(self) -> tuple[Reply | Failure, list[zmq.Frame]] | None:
        """The next reply or failure that has arrived, or None. Raises WireError for anything else."""
        while True:
            try:
                header, *frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return None
            try:
                message = decode_node(header.buffer)
                if isinstance(message, Welcome):
                    self._check(message)
                    continue
            except WireError as error:
                raise WireError(error.message, peer=self.peer.name) from error
            return message, frames

    def _check(self, welcome: Welcome) -> None:
        first, last = PROTOCOL_VERSIONS
        if welcome.public_key != self.peer.public_key or not first <= welcome.version <= last:
            raise WireError(f"the node welcomes us as another peer or with version {welcome.version}")

    def lost(self) -> PeerUnreachable | None:
        """The reason why this link is dead, once it is."""
        while True:
            try:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return None
            reason = _REASONS.get(zmq.Event(event["event"]))
            if reason is not None:
                return PeerUnreachable(f"{self.peer.endpoints[0]}: {reason}", peer=self.peer.name)

    def close(self) -> None:
        self._opened.close()
