"""The node's side: one thread owns the ROUTER socket, checks what arrives, and sends the answers.

Threaded. It knows connections, greetings and sizes; what an expert is, its handler knows. The handler is called in this
thread and must be quick; answers may come from any thread.
"""

from __future__ import annotations

import contextlib
import logging
import socket as sockets
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import zmq

from learning_at_home.clock import CLOCK_SKEW_TOLERATED_S, Clock
from learning_at_home.errors import (
    ConfigError,
    DeadlinePassed,
    GreetingRequired,
    LearningAtHomeError,
    UnknownProject,
    VersionMismatch,
    WireError,
)
from learning_at_home.identity import Identity, curve_public_key
from learning_at_home.transport.authentication import Authenticator, caller_key
from learning_at_home.transport.link import ZERO_COPY_BYTES
from learning_at_home.transport.socket_options import bound, secure_server
from learning_at_home.transport.unsent import MAX_UNSENT_BYTES, UnsentBytes
from learning_at_home.version import AGENT
from learning_at_home.wire.framing import decode_caller, encode, split_frames
from learning_at_home.wire.messages import (
    MAX_MESSAGE_CHARS,
    PROTOCOL_VERSIONS,
    Failure,
    Greeting,
    Reply,
    Request,
    Welcome,
    Work,
)

log = logging.getLogger(__name__)

MAX_GREETED = 16_384  # connections remembered; one that was forgotten is asked to greet again
MAX_QUEUED_ANSWERS = 16_384  # between the device thread and the socket; more than the runtime may hold in work
RECEIVE_BURST = 64  # messages taken in before answers get their turn


@dataclass(frozen=True, slots=True)
class Ticket:
    """Where one answer goes, and until when it is wanted."""

    caller: bytes  # Ed25519 public key, proven by the connection
    call_id: int
    issued_ms: int
    deadline: float  # monotonic; work not started by then is dropped
    received: float  # monotonic
    routing_id: bytes = field(repr=False)


class WorkHandler(Protocol):
    """Who takes the work: the node's runtime."""

    def on_work(self, ticket: Ticket, work: Work, frames: list[list[zmq.Frame]]) -> None:
        """Admit and queue it, quickly. A LearningAtHomeError becomes the failure of this one call."""
        ...


@dataclass(slots=True)
class Counters:
    """What became of messages that are not work. Written by the server's thread only."""

    malformed: int = 0
    refused: int = 0
    dropped_answers: int = 0  # their caller has left or does not read


class Server:
    """Serves one project's expert calls on one port."""

    def __init__(
        self,
        identity: Identity,
        project: str,
        handler: WorkHandler,
        clock: Clock,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        max_rows: int,
        max_bytes: int,
        max_unsent_bytes: int = MAX_UNSENT_BYTES,
    ) -> None:
        self._identity = identity
        self._project = project
        self._handler = handler
        self._clock = clock
        self._host = host
        self.port = port
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self.counters = Counters()
        self.error: BaseException | None = None  # why the thread ended, when it was not told to
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._greeted: OrderedDict[bytes, bytes] = OrderedDict()  # routing id -> Ed25519 public key
        self._unsent = UnsentBytes(max_unsent_bytes)
        self._answers: deque[tuple[Ticket, Reply | Failure, Sequence[memoryview | bytes]]] = deque()
        self._wake_in, self._wake_out = sockets.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="data-plane", daemon=True)

    def start(self) -> None:
        """Bind and serve. Raises ConfigError when the address cannot be bound."""
        self._authenticator = Authenticator(self._context)
        self._router = self._context.socket(zmq.ROUTER)
        bound(self._router)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        secure_server(self._router, self._identity)
        host = f"[{self._host}]" if ":" in self._host else self._host
        try:
            self._router.bind(f"tcp://{host}:{self.port or '*'}")
        except zmq.ZMQError as error:
            self._close()
            raise ConfigError(f"cannot listen on {self._host}:{self.port}: {error}; choose another --port") from error
        self.port = int(self._router.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])
        self._thread.start()

    def answer(self, ticket: Ticket, message: Reply | Failure, frames: Sequence[memoryview | bytes] = ()) -> None:
        """Queue an answer, from any thread. Never blocks: an answer over the bound is dropped and counted."""
        if len(self._answers) >= MAX_QUEUED_ANSWERS:
            self.counters.dropped_answers += 1
            return
        self._answers.append((ticket, message, frames))
        self._wake()

    def fail(self, ticket: Ticket, error: LearningAtHomeError) -> None:
        """Answer with an error: its code, words and retry hint."""
        self.answer(ticket, _failure(ticket.call_id, error))

    def stop(self, timeout_s: float = 1.0) -> None:
        """Send what is queued, then close. May be called twice, and without a start."""
        self._stopping.set()
        self._wake()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):  # a wake is already waiting, or the server has closed
            self._wake_in.send(b"\0")

    def _run(self) -> None:
        try:
            poller = zmq.Poller()
            poller.register(self._router, zmq.POLLIN)
            poller.register(self._authenticator.socket, zmq.POLLIN)
            poller.register(self._wake_out, zmq.POLLIN)
            while not self._stopping.is_set():
                for ready, _ in poller.poll():
                    if ready is self._router:
                        self._receive()
                    elif ready is self._authenticator.socket:
                        self._authenticator.answer_all()
                self._send_answers()
            self._send_answers()
            self._router.setsockopt(zmq.LINGER, 500)  # the last answers may still leave
        except BaseException as error:
            self.error = error
            log.exception("the data plane stopped")
        finally:
            self._close()

    def _close(self) -> None:
        self._router.close()
        self._authenticator.socket.close(linger=0)
        self._context.term()
        self._wake_in.close()
        self._wake_out.close()

    def _receive(self) -> None:
        for _ in range(RECEIVE_BURST):
            try:
                routing_id, header, *frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            except ValueError:  # a message without a header
                self.counters.malformed += 1
                continue
            self._take(routing_id.bytes, header, frames)

    def _take(self, routing_id: bytes, header: zmq.Frame, frames: list[zmq.Frame]) -> None:
        """One message: a greeting is welcomed, a request becomes work, anything else is answered by a failure."""
        try:
            message = decode_caller(header.buffer)
            if isinstance(message, Greeting):
                self._greet(routing_id, message, caller_key(header))
                return
            caller = self._greeted.get(routing_id)
            if caller is None or curve_public_key(caller) != caller_key(header):
                raise GreetingRequired("this connection has not been greeted; greet first")
            self._greeted.move_to_end(routing_id)
            if message.project != self._project:
                raise UnknownProject(f"this node serves project {self._project}, not {message.project[:40]!r}")
            tensors = split_frames([work.tensors for work in message.work], frames)
        except WireError as error:
            self.counters.malformed += 1
            self._send(routing_id, _failure(None, error))
            return
        except LearningAtHomeError as error:
            self.counters.refused += 1
            self._send(routing_id, _failure(None, error))
            return
        self._dispatch(routing_id, caller, message, tensors)

    def _greet(self, routing_id: bytes, greeting: Greeting, curve_key: bytes) -> None:
        if len(greeting.public_key) != 32 or curve_public_key(greeting.public_key) != curve_key:
            raise WireError("the greeting's public key is not the key of this connection")
        first, last = PROTOCOL_VERSIONS
        if greeting.versions[0] > last or greeting.versions[1] < first:
            raise VersionMismatch(
                f"the caller speaks versions {greeting.versions[0]} to {greeting.versions[1]} of the protocol, "
                f"this node {first} to {last}; update the older one"
            )
        self._greeted[routing_id] = greeting.public_key
        self._greeted.move_to_end(routing_id)
        if len(self._greeted) > MAX_GREETED:
            self._greeted.popitem(last=False)
        version = min(last, greeting.versions[1])
        wall_ms = round(self._clock.wall_s() * 1000)
        public_key = self._identity.public_key
        self._send(routing_id, Welcome(version, public_key, AGENT, wall_ms, self._max_rows, self._max_bytes))

    def _dispatch(
        self, routing_id: bytes, caller: bytes, request: Request, tensors: list[list[list[zmq.Frame]]]
    ) -> None:
        now = self._clock.monotonic_s()
        age_s = self._clock.wall_s() - request.issued_ms / 1000
        late = (
            age_s > request.timeout_ms / 1000 + CLOCK_SKEW_TOLERATED_S
        )  # it lay in a buffer while this node was stopped
        for work, frames in zip(request.work, tensors, strict=True):
            deadline = now + request.timeout_ms / 1000
            ticket = Ticket(caller, work.call_id, request.issued_ms, deadline, now, routing_id)
            try:
                if late:
                    raise DeadlinePassed(f"{work.uid}: the request is {age_s:.1f} s old by this node's clock")
                self._handler.on_work(ticket, work, frames)
            except LearningAtHomeError as error:
                self.counters.refused += 1
                self._send(routing_id, _failure(work.call_id, error))

    def _send_answers(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake_out.recv(4096):
                pass
        while self._answers:
            ticket, message, frames = self._answers.popleft()
            self._send(ticket.routing_id, message, frames)

    def _send(
        self, routing_id: bytes, message: Welcome | Reply | Failure, frames: Sequence[memoryview | bytes] = ()
    ) -> None:
        if frames and not self._unsent.has_room(routing_id):  # it asks for much and reads nothing
            self.counters.dropped_answers += 1
            return
        try:
            self._router.send(routing_id, zmq.NOBLOCK | zmq.SNDMORE)
            self._router.send(encode(message), zmq.NOBLOCK | (zmq.SNDMORE if frames else 0))
            for position, frame in enumerate(frames, 1):
                more = zmq.SNDMORE if position < len(frames) else 0
                if len(frame) < ZERO_COPY_BYTES:
                    self._router.send(frame, zmq.NOBLOCK | more)
                else:
                    tracker = self._router.send(frame, zmq.NOBLOCK | more, copy=False, track=True)
                    self._unsent.add(routing_id, tracker, len(frame))
        except zmq.ZMQError:  # EHOSTUNREACH: it left; EAGAIN: it does not read
            self.counters.dropped_answers += 1


def _failure(call_id: int | None, error: LearningAtHomeError) -> Failure:
    retry_after_ms = None if error.retry_after_s is None else round(error.retry_after_s * 1000)
    return Failure(call_id, error.code, error.message[:MAX_MESSAGE_CHARS], retry_after_ms)
