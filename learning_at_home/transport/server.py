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
from dataclasses import dataclass
from typing import Protocol

import msgspec
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
from learning_at_home.transport.answers import QueuedAnswer, failure_of, in_messages
from learning_at_home.transport.authentication import Authenticator, caller_key
from learning_at_home.transport.busy_poll import BusyPoll
from learning_at_home.transport.inflow import InflowGuard
from learning_at_home.transport.inflow_accounts import InflowLimits
from learning_at_home.transport.link import ZERO_COPY_BYTES
from learning_at_home.transport.server_counters import Counters
from learning_at_home.transport.socket_options import (
    MORE_NOBLOCK,
    NOBLOCK,
    POLLIN,
    bound,
    has_input,
    plain_send,
    secure_server,
)
from learning_at_home.transport.unsent import MAX_UNSENT_BYTES, UnsentBytes
from learning_at_home.version import AGENT
from learning_at_home.wire.framing import decode_caller, encode, split_frames
from learning_at_home.wire.messages import (
    CHUNK_BYTES,
    CODECS,
    PLAIN_CHUNK_BYTES,
    PROTOCOL_VERSIONS,
    Codec,
    Failure,
    Greeting,
    NodeMessage,
    Reply,
    Request,
    Welcome,
    Work,
)

log = logging.getLogger(__name__)

BACKLOG = 1_024  # connections on their way in; libzmq's 100 make a burst of trainers wait for their second attempt
MAX_GREETED = 16_384  # connections remembered; one that was forgotten is asked to greet again
MAX_QUEUED_ANSWERS = 16_384  # between the device thread and the socket; more than the runtime may hold in work
ZERO_COPY_RECV = 10  # zmq.h; pyzmq has no name for it. With it a small frame that came alone holds 8 KiB
MAX_PARTS = 4_096  # of a message: 1,024 pieces of work with two tensors each, and 128 full frames, are 2,177
BUSY_S = 3e-4  # the next message is looked for without sleeping, where messages come as quickly
RECEIVE_BURST = 64  # messages taken in before answers get their turn

TensorFrame = zmq.Frame | memoryview  # some of a tensor's bytes


class Ticket(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Where one answer goes, and until when it is wanted. A struct, because one is made for every call."""

    caller: bytes  # Ed25519 public key, proven by the connection unless that is unencrypted
    call_id: int
    issued_ms: int
    deadline: float  # monotonic; work not started by then is dropped
    received: float  # monotonic
    routing_id: bytes
    waited_ms: int = 0  # over 0 when the caller sends it again
    codec: Codec = "none"  # of the request's tensors
    reply_codec: Codec = "none"  # wanted for the answer's


class WorkHandler(Protocol):
    """Who takes the work: the node's runtime."""

    def on_work(self, ticket: Ticket, work: Work, frames: list[list[TensorFrame]]) -> None:
        """Admit and queue it, quickly. A LearningAtHomeError becomes the failure of this one call."""
        ...

    def work_here(self) -> bool:
        """Called after each burst of messages: see to what was queued, and compute a little of it in this thread where
        that is quicker than handing it over. Whether to be called again soon: more of that kind waits.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Caller:
    """Who has greeted on a connection."""

    public_key: bytes  # Ed25519
    user_id: str | None  # what libzmq says of the connection's key; None when it has none (unencrypted)


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
        inflow_limits: InflowLimits | None = None,
        unencrypted: bool = False,
    ) -> None:
        """`unencrypted`: no CURVE, and callers are who they say they are. For trusted machines in one rack."""
        self._unencrypted = unencrypted
        self._chunk_bytes = PLAIN_CHUNK_BYTES if unencrypted else CHUNK_BYTES
        self._inflow_limits = inflow_limits
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
        self._context.set(ZERO_COPY_RECV, 0)
        self._greeted: OrderedDict[bytes, _Caller] = OrderedDict()  # by routing id
        self._unsent = UnsentBytes(max_unsent_bytes)
        self._answers: deque[QueuedAnswer] = deque()
        self._wake_in, self._wake_out = sockets.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._is_woken = False  # and has not looked yet
        self._stop_now = False
        self._ident: int | None = None  # of the server's thread, once it runs
        self._thread = threading.Thread(target=self._run, name="data-plane", daemon=True)

    def start(self) -> None:
        """Bind and serve. Raises ConfigError when the address cannot be bound."""
        self._authenticator = Authenticator(self._context)
        self._router = self._context.socket(zmq.ROUTER)
        self._plain_send = plain_send(self._router)
        bound(self._router, self._chunk_bytes)
        self._guard = InflowGuard(self._router, self._inflow_limits)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.BACKLOG, BACKLOG)
        # Without it libzmq never reads, and never frees, what a second connection with a living one's routing id sends.
        self._router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        secure_server(self._router, None if self._unencrypted else self._identity)
        host = f"[{self._host}]" if ":" in self._host else self._host
        try:
            self._router.bind(f"tcp://{host}:{self.port or '*'}")
        except zmq.ZMQError as error:
            self._close()
            raise ConfigError(f"cannot listen on {self._host}:{self.port}: {error}; choose another --port") from error
        self.port = int(self._router.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])
        self._thread.start()

    def answer(self, ticket: Ticket, message: Reply | Failure, frames: Sequence[memoryview | bytes] = ()) -> None:
        """Send an answer, from any thread. Never blocks: an answer over the bound is dropped and counted.

        From the server's own thread it is sent by the next `flush`, or when `work_here` returns.
        """
        here = threading.get_ident() == self._ident
        if len(self._answers) >= MAX_QUEUED_ANSWERS:
            if not here:
                self.counters.dropped_answers += 1
                return
            self._send_answers()
        self._answers.append((ticket.routing_id, message, frames))
        if not here:
            self.wake()

    def flush(self) -> None:
        """Send what was answered until now; from another than the server's own thread it is being sent already."""
        if threading.get_ident() == self._ident:
            self._send_answers()

    def fail(self, ticket: Ticket, error: LearningAtHomeError) -> None:
        """Answer with an error: its code, words and retry hint."""
        self.answer(ticket, failure_of(ticket.call_id, error))

    def stop(self, timeout_s: float = 1.0) -> None:
        """Send what is queued, then close. May be called twice, and without a start."""
        self._stop_now = True
        self.wake()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def wake(self) -> None:
        """Let the server's thread look for answers and work, from any thread. Only the first of several is a call."""
        if self._is_woken:
            return
        self._is_woken = True
        with contextlib.suppress(BlockingIOError, OSError):  # a wake is already waiting, or the server has closed
            self._wake_in.send(b"\0")

    def _run(self) -> None:
        self._ident = threading.get_ident()
        try:
            wake_fd = self._wake_out.fileno()
            sockets = [(self._router, POLLIN), (self._authenticator.socket, POLLIN), (wake_fd, POLLIN)]
            busy_poll = BusyPoll(BUSY_S)
            more_work = False
            now = self._clock.monotonic_s()
            while not self._stop_now:
                timeout_ms = 0 if more_work else self._guard.timeout_ms(now)
                for ready, _ in busy_poll.poll(sockets, timeout_ms):
                    if ready is self._router:
                        self._receive()
                    elif ready == wake_fd:
                        self._clear_wake()
                    else:
                        self._authenticator.answer_all()
                if self._answers:
                    self._send_answers()
                more_work = self._handler.work_here()
                if self._answers:
                    self._send_answers()
                now = self._clock.monotonic_s()
                if now >= self._guard.next_look:
                    self.counters.cut_off += len(self._guard.look(now))
            self._send_answers()
            self._router.setsockopt(zmq.LINGER, 500)  # the last answers may still leave
        except BaseException as error:
            self.error = error
            log.exception("the data plane stopped")
        finally:
            self._close()

    def _close(self) -> None:
        self._guard.close()
        self._router.close()
        self._authenticator.socket.close(linger=0)
        self._context.term()
        self._wake_in.close()
        self._wake_out.close()

    def _receive(self) -> None:
        recv = self._router.recv
        for _ in range(RECEIVE_BURST):
            part = recv(0, False)
            routing_id = part.bytes
            parts: list[zmq.Frame] = []
            num_parts = num_bytes = 0
            while part.more:  # a message arrives whole: none of these waits
                part = recv(0, False)
                num_parts += 1
                num_bytes += len(part)
                if num_parts <= MAX_PARTS:
                    parts.append(part)
            if num_parts:
                self._guard.received(part, num_bytes, num_parts)
            if num_parts > MAX_PARTS:
                self._guard.end(part)
            if 0 < num_parts <= MAX_PARTS:
                self._take(routing_id, parts[0], parts[1:])
            else:
                self.counters.malformed += 1
            if not has_input(self._router):
                return

    def _take(self, routing_id: bytes, header: zmq.Frame, frames: list[zmq.Frame]) -> None:
        """One message: a greeting is welcomed, a request becomes work, anything else is answered by a failure."""
        try:
            message = decode_caller(header)
            user_id = None if self._unencrypted else caller_key(header)
            if isinstance(message, Greeting):
                if frames:
                    raise WireError("frames follow a greeting")
                self._greet(routing_id, message, user_id)
                return
            caller = self._greeted.get(routing_id)
            if caller is None or caller.user_id != user_id:
                raise GreetingRequired("this connection has not been greeted; greet first")
            self._greeted.move_to_end(routing_id)
            if message.project != self._project:
                raise UnknownProject(f"this node serves project {self._project}, not {message.project[:40]!r}")
            groups = [work.tensors for work in message.work] if len(message.work) > 1 else (message.work[0].tensors,)
            tensors = split_frames(
                groups, frames, codec=message.codec, data=message.data, chunk_bytes=self._chunk_bytes
            )
        except WireError as error:
            self.counters.malformed += 1
            self._send(routing_id, failure_of(None, error))
            return
        except LearningAtHomeError as error:
            self.counters.refused += 1
            self._send(routing_id, failure_of(None, error))
            return
        self._dispatch(routing_id, caller.public_key, message, tensors)

    def _greet(self, routing_id: bytes, greeting: Greeting, user_id: str | None) -> None:
        if len(greeting.public_key) != 32:
            raise WireError("the greeting's public key is no Ed25519 key")
        if user_id is not None and curve_public_key(greeting.public_key).hex() != user_id:
            raise WireError("the greeting's public key is not the key of this connection")
        first, last = PROTOCOL_VERSIONS
        if greeting.versions[0] > last or greeting.versions[1] < first:
            raise VersionMismatch(
                f"the caller speaks versions {greeting.versions[0]} to {greeting.versions[1]} of the protocol, "
                f"this node {first} to {last}; update the older one"
            )
        self._greeted[routing_id] = _Caller(greeting.public_key, user_id)
        self._greeted.move_to_end(routing_id)
        if len(self._greeted) > MAX_GREETED:
            self._greeted.popitem(last=False)
        version = min(last, greeting.versions[1])
        wall_ms = round(self._clock.wall_s() * 1000)
        public_key = self._identity.public_key
        self._send(routing_id, Welcome(version, public_key, AGENT, wall_ms, self._max_rows, self._max_bytes, CODECS))

    def _dispatch(
        self, routing_id: bytes, caller: bytes, request: Request, tensors: list[list[list[TensorFrame]]]
    ) -> None:
        now = self._clock.monotonic_s()
        age_s = self._clock.wall_s() - request.issued_ms / 1000
        # A late one lay in a buffer while this node was stopped.
        late = age_s > (request.waited_ms + request.timeout_ms) / 1000 + CLOCK_SKEW_TOLERATED_S
        deadline = now + request.timeout_ms / 1000
        for work, frames in zip(request.work, tensors, strict=True):
            ticket = Ticket(
                caller,
                work.call_id,
                request.issued_ms,
                deadline,
                now,
                routing_id,
                request.waited_ms,
                request.codec,
                request.reply_codec,
            )
            try:
                if late:
                    raise DeadlinePassed(f"{work.uid}: the request is {age_s:.1f} s old by this node's clock")
                self._handler.on_work(ticket, work, frames)
            except LearningAtHomeError as error:
                self.counters.refused += 1
                self._send(routing_id, failure_of(work.call_id, error))

    def _clear_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake_out.recv(4096):
                pass
        self._is_woken = False  # before answers and work are looked at, and after the bytes are gone

    def _send_answers(self) -> None:
        if len(self._answers) == 1:  # nearly always, when few call
            self._send(*self._answers.popleft())
            return
        for routing_id, message, frames in in_messages(self._answers):
            self._send(routing_id, message, frames)

    def _send(self, routing_id: bytes, message: NodeMessage, frames: Sequence[memoryview | bytes] = ()) -> None:
        header = encode(message)
        large = frames or len(header) >= ZERO_COPY_BYTES
        if large and not self._unsent.has_room(routing_id):  # it asks for much and reads nothing
            self.counters.dropped_answers += 1
            return
        try:
            send = self._plain_send
            send(routing_id, MORE_NOBLOCK)
            left = len(frames) + 1
            for frame in (header, *frames):
                left -= 1
                flags = MORE_NOBLOCK if left else NOBLOCK
                if len(frame) < ZERO_COPY_BYTES:
                    send(frame, flags)
                else:
                    tracker = send(frame, flags, False, True)
                    assert tracker is not None, "it was asked for"
                    self._unsent.add(routing_id, tracker, len(frame))
        except zmq.ZMQError:  # EHOSTUNREACH: it left; EAGAIN: it does not read
            self.counters.dropped_answers += 1
