"""Callers and nodes over real sockets with CURVE: an echo handler, then everything that can go wrong."""

from __future__ import annotations

import socket as sockets
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import zmq

from learning_at_home.clock import SystemClock
from learning_at_home.errors import (
    CallTimeout,
    ExpertFailed,
    GreetingRequired,
    PeerUnreachable,
    UnknownExpert,
    UnknownProject,
    UsageError,
    VersionMismatch,
    WireError,
)
from learning_at_home.identity import Identity
from learning_at_home.peer_address import PLAIN_SCHEME, PeerAddress
from learning_at_home.transport.calls import Answer, Call
from learning_at_home.transport.connections import Connections
from learning_at_home.transport.server import MAX_PARTS, Server, TensorFrame, Ticket
from learning_at_home.transport.socket_options import secure_caller
from learning_at_home.wire.framing import decode_node, encode
from learning_at_home.wire.messages import (
    CHUNK_BYTES,
    MAX_HEADER_BYTES,
    PLAIN_CHUNK_BYTES,
    PROTOCOL_VERSIONS,
    Answers,
    Failure,
    Greeting,
    Reply,
    Request,
    TensorSpec,
    Welcome,
    Work,
)

CLOCK = SystemClock()
STRANGER = Identity.generate()


class Echo:
    """Answers each work with its own tensors; some uids misbehave."""

    server: Server

    def __init__(self) -> None:
        self.held: list[Ticket] = []
        self.seen: list[str] = []
        self.work_came = threading.Event()
        self.turn: Callable[[], None] = lambda: None  # of the server's thread

    def on_work(self, ticket: Ticket, work: Work, frames: list[list[TensorFrame]]) -> None:
        self.seen.append(work.uid)
        if work.uid == "ffn0.9":
            raise UnknownExpert("this node does not host ffn0.9")
        if work.uid == "ffn0.8":
            self.held.append(ticket)
            self.work_came.set()
            return
        reply = Reply(ticket.call_id, work.tensors, 1, 2, 3, 0.5)
        answer = [bytes(memoryview(frame)) for tensor in frames for frame in tensor]  # type: ignore[arg-type]
        if work.uid == "ffn0.7":
            answer = answer[:-1]
        if work.uid == "ffn0.6":
            reply = replace_call_id(reply, ticket.call_id + 10_000)
        self.server.answer(ticket, reply, answer)
        if work.uid == "ffn0.5":
            self.server.answer(ticket, reply, answer)

    def work_here(self) -> bool:
        self.turn()
        return False


def replace_call_id(reply: Reply, call_id: int) -> Reply:
    return Reply(call_id, reply.tensors, reply.queued_us, reply.computed_us, reply.updates, reply.load_ms)


@pytest.fixture
def echo() -> Iterator[Echo]:
    handler = Echo()
    handler.server = Server(Identity.generate(), "digits", handler, CLOCK, max_rows=10, max_bytes=1000)
    handler.server.start()
    yield handler
    handler.server.stop()
    assert not handler.server.is_alive
    assert handler.server.error is None


@pytest.fixture
def connections() -> Iterator[Connections]:
    pool = Connections(Identity.generate(), CLOCK)
    yield pool
    pool.close()


def address(echo: Echo) -> PeerAddress:
    return PeerAddress(echo.server._identity.public_key, (f"tcp://127.0.0.1:{echo.server.port}",), "brisk-heron")


def call(uid: str = "ffn0.1", data: bytes = b"\1" * 16, chunk_bytes: int = CHUNK_BYTES) -> Call:
    chunks = tuple(data[start : start + chunk_bytes] for start in range(0, len(data), chunk_bytes))
    return Call(uid, "forward", (TensorSpec("float32", (len(data) // 4,)),), chunks)


def ask(connections: Connections, peer: PeerAddress, *calls: Call, timeout_s: float = 5.0) -> list[Answer]:
    with connections.exchange() as exchange:
        deadline = CLOCK.monotonic_s() + timeout_s
        exchange.send(peer, "digits", calls, deadline)
        answers = []
        while answer := exchange.next_answer(deadline + 1):
            answers.append(answer)
        assert exchange.pending == 0
        return answers


def test_one_message_carries_work_for_many_experts_and_each_answers(echo: Echo, connections: Connections) -> None:
    answers = ask(connections, address(echo), call("ffn0.1", b"a" * 8), call("ffn0.2", b"b" * 3 * CHUNK_BYTES))
    assert [(a.uid, b"".join(f.bytes for f in a.tensors[0])) for a in answers] == [
        ("ffn0.1", b"a" * 8),
        ("ffn0.2", b"b" * 3 * CHUNK_BYTES),
    ]
    assert answers[0].reply is not None
    assert answers[0].reply.updates == 3


def test_an_error_of_one_expert_leaves_the_others_alone(echo: Echo, connections: Connections) -> None:
    failed, fine = ask(connections, address(echo), call("ffn0.9"), call("ffn0.1"))
    assert isinstance(failed.error, UnknownExpert)
    assert str(failed.error) == "this node does not host ffn0.9 (from brisk-heron)"
    assert fine.error is None


def test_silence_ends_at_the_deadline_and_the_late_answer_is_dropped(echo: Echo, connections: Connections) -> None:
    start = CLOCK.monotonic_s()
    (answer,) = ask(connections, address(echo), call("ffn0.8"), timeout_s=0.2)
    assert isinstance(answer.error, CallTimeout)
    assert 0.2 <= CLOCK.monotonic_s() - start < 0.7
    echo.server.answer(echo.held[0], Reply(echo.held[0].call_id, (), 0, 0, 0, 0.0))
    assert ask(connections, address(echo), call())[0].error is None


def test_a_late_answer_on_a_living_connection_is_counted(echo: Echo, connections: Connections) -> None:
    with connections.exchange() as exchange:
        exchange.send(address(echo), "digits", [call("ffn0.8")], CLOCK.monotonic_s() + 5)
        assert echo.work_came.wait(5)
    echo.server.answer(echo.held[0], Reply(echo.held[0].call_id, (), 0, 0, 0, 0.0))
    for _ in range(2):  # the first may overtake what another thread has queued
        assert ask(connections, address(echo), call())[0].error is None
    assert connections.late_answers == 1


def test_a_node_that_stops_ends_the_calls_in_flight_at_once(echo: Echo, connections: Connections) -> None:
    with connections.exchange() as exchange:
        exchange.send(address(echo), "digits", [call("ffn0.8"), call("ffn0.8")], CLOCK.monotonic_s() + 30)
        assert echo.work_came.wait(5)
        echo.server.stop()
        start = CLOCK.monotonic_s()
        answers = [exchange.next_answer(start + 20), exchange.next_answer(start + 20)]
        assert all(isinstance(a.error, PeerUnreachable) for a in answers if a)
        assert None not in answers
        assert CLOCK.monotonic_s() - start < 1.0


def test_a_port_where_nobody_listens_is_an_error_at_once(connections: Connections) -> None:
    with sockets.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    start = CLOCK.monotonic_s()
    gone = PeerAddress(Identity.generate().public_key, (f"tcp://127.0.0.1:{port}",), "gone")
    (answer,) = ask(connections, gone, call())
    assert isinstance(answer.error, PeerUnreachable)
    assert CLOCK.monotonic_s() - start < 1.0


def test_a_peer_with_another_key_is_refused(echo: Echo, connections: Connections) -> None:
    impostor = replace(address(echo), public_key=Identity.generate().public_key)
    (answer,) = ask(connections, impostor, call(), timeout_s=2.0)
    assert isinstance(answer.error, PeerUnreachable | CallTimeout)
    assert echo.seen == []


@pytest.mark.parametrize("key", [b"", b"\0" * 31, b"\xff" * 32])
def test_an_impossible_key_or_endpoint_is_a_typed_error(connections: Connections, key: bytes) -> None:
    (answer,) = ask(connections, PeerAddress(key, ("tcp://127.0.0.1:1",), "odd"), call(), timeout_s=1.0)
    assert isinstance(answer.error, WireError | PeerUnreachable)


@pytest.mark.parametrize("endpoint", ["ipc:///etc/passwd", "tcp://", "tcp://127.0.0.1:99999", "nonsense"])
def test_an_impossible_endpoint_is_unreachable(connections: Connections, endpoint: str) -> None:
    (answer,) = ask(connections, PeerAddress(Identity.generate().public_key, (endpoint,), "odd"), call(), timeout_s=1.0)
    assert isinstance(answer.error, PeerUnreachable)


def test_another_projects_node_says_so(echo: Echo, connections: Connections) -> None:
    with connections.exchange() as exchange:
        deadline = CLOCK.monotonic_s() + 5
        exchange.send(address(echo), "cats", [call()], deadline)
        answer = exchange.next_answer(deadline)
    assert answer is not None
    assert isinstance(answer.error, UnknownProject)


@pytest.mark.parametrize("uid", ["ffn0.7", "ffn0.6"])
def test_a_reply_of_the_wrong_size_or_id_is_the_nodes_fault(echo: Echo, connections: Connections, uid: str) -> None:
    (answer,) = ask(connections, address(echo), call(uid), timeout_s=0.5)
    assert isinstance(answer.error, WireError | CallTimeout)
    assert answer.error.peer == "brisk-heron"


def test_the_second_of_two_replies_is_dropped(echo: Echo, connections: Connections) -> None:
    assert len(ask(connections, address(echo), call("ffn0.5"))) == 1
    assert [a.uid for a in ask(connections, address(echo), call("ffn0.1"))] == ["ffn0.1"]


def test_threads_do_not_disturb_each_other(echo: Echo, connections: Connections) -> None:
    failures = []

    def caller(number: int) -> None:
        data = bytes([number]) * 64
        for _ in range(20):
            (answer,) = ask(connections, address(echo), call("ffn0.1", data))
            if answer.error or answer.tensors[0][0].bytes != data:
                failures.append(answer)

    threads = [threading.Thread(target=caller, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not failures


def test_closed_connections_refuse_and_close_twice(connections: Connections) -> None:
    connections.close()
    connections.close()
    with pytest.raises(UsageError), connections.exchange():
        pass


@pytest.fixture
def stranger(echo: Echo) -> Iterator[zmq.Socket[bytes]]:
    """A caller who writes its own bytes."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVTIMEO, 5_000)
    secure_caller(socket, STRANGER, echo.server._identity.public_key)
    socket.connect(f"tcp://127.0.0.1:{echo.server.port}")
    yield socket
    socket.close()
    context.term()


def greeting() -> bytes:
    return encode(Greeting(PROTOCOL_VERSIONS, STRANGER.public_key, "test"))


def failure_code(socket: zmq.Socket[bytes]) -> int:
    message = decode_node(socket.recv_multipart()[0])
    assert isinstance(message, Failure)
    return message.code


def test_a_request_without_a_greeting_is_refused(echo: Echo, stranger: zmq.Socket[bytes]) -> None:
    stranger.send(encode(Request("digits", 0, 1000, (Work(1, "ffn0.1", "forward", ()),))))
    assert failure_code(stranger) == GreetingRequired.code
    assert echo.seen == []


def test_a_connection_that_the_node_forgot_is_replaced(echo: Echo, connections: Connections) -> None:
    assert ask(connections, address(echo), call())[0].error is None
    echo.server._greeted.clear()
    assert isinstance(ask(connections, address(echo), call())[0].error, GreetingRequired)
    assert ask(connections, address(echo), call())[0].error is None


def test_a_greeting_with_a_strangers_key_is_refused(stranger: zmq.Socket[bytes]) -> None:
    stranger.send(encode(Greeting((1, 1), Identity.generate().public_key, "test")))
    assert failure_code(stranger) == WireError.code


def test_versions_that_share_nothing_say_both_ranges(stranger: zmq.Socket[bytes]) -> None:
    stranger.send(encode(Greeting((7, 9), STRANGER.public_key, "test")))
    message = decode_node(stranger.recv_multipart()[0])
    assert isinstance(message, Failure)
    assert message.code == VersionMismatch.code
    assert "7 to 9" in message.message
    assert "5 to 5" in message.message


def test_garbage_and_lies_are_answered_and_harm_nobody(
    echo: Echo, stranger: zmq.Socket[bytes], connections: Connections
) -> None:
    stranger.send(greeting())
    decode_node(stranger.recv_multipart()[0])
    now_ms = round(CLOCK.wall_s() * 1000)
    lying = Request("digits", now_ms, 1000, (Work(1, "ffn0.1", "forward", (TensorSpec("float32", (1 << 38,)),)),))
    short = Request("digits", now_ms, 1000, (Work(1, "ffn0.1", "forward", (TensorSpec("float32", (4,)),)),))
    for parts in (
        [b""],
        [b"\xff" * 100],
        [b"\x93" * 200_000],
        [encode(short)],
        [encode(short), b"\0" * 15],
        [encode(short), b"\0" * 17],
        [encode(short), b"\0" * 8, b"\0" * 8],
        [encode(lying), b"\0" * 16],
        [encode(short)[:-3], b"\0" * 16],
    ):
        stranger.send_multipart(parts)
        assert failure_code(stranger) == WireError.code, parts[0][:40]
    assert echo.server.counters.malformed == 9
    assert echo.seen == []
    assert ask(connections, address(echo), call())[0].error is None


def test_work_that_lay_in_a_buffer_too_long_is_dropped(echo: Echo, stranger: zmq.Socket[bytes]) -> None:
    stranger.send(greeting())
    decode_node(stranger.recv_multipart()[0])
    old_ms = round((CLOCK.wall_s() - 60) * 1000)
    stranger.send(encode(Request("digits", old_ms, 1000, (Work(1, "ffn0.1", "backward", ()),))))
    assert failure_code(stranger) == 204
    assert echo.seen == []


def test_a_caller_that_does_not_read_cannot_fill_the_nodes_memory(connections: Connections) -> None:
    echo = Echo()
    limit = 4 * CHUNK_BYTES
    echo.server = Server(Identity.generate(), "digits", echo, CLOCK, max_rows=1, max_bytes=1, max_unsent_bytes=limit)
    echo.server.start()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    deaf = context.socket(zmq.DEALER)
    deaf.setsockopt(zmq.LINGER, 0)
    deaf.setsockopt(zmq.RCVHWM, 1)
    deaf.setsockopt(zmq.RCVBUF, 65_536)
    secure_caller(deaf, STRANGER, echo.server._identity.public_key)
    deaf.connect(f"tcp://127.0.0.1:{echo.server.port}")
    try:
        deaf.send(greeting())
        spec = TensorSpec("float32", (CHUNK_BYTES // 4,))
        for call_id in range(60):
            work = Work(call_id, "ffn0.1", "forward", (spec,))
            request = Request("digits", round(CLOCK.wall_s() * 1000), 60_000, (work,))
            deaf.send_multipart([encode(request), bytes(CHUNK_BYTES)])
        deadline = CLOCK.monotonic_s() + 20
        while len(echo.seen) < 60 and CLOCK.monotonic_s() < deadline:
            assert ask(connections, address(echo), call("ffn0.2"))[0].error is None  # the others are served meanwhile
            echo.seen.remove("ffn0.2")
        assert len(echo.seen) == 60
        assert echo.server.counters.dropped_answers > 0
        assert sum(echo.server._unsent._bytes.values()) <= limit + CHUNK_BYTES
    finally:
        deaf.close()
        context.term()
        echo.server.stop()


def test_an_error_of_the_runtime_reaches_the_caller_with_its_cause(echo: Echo, connections: Connections) -> None:
    with connections.exchange() as exchange:
        deadline = CLOCK.monotonic_s() + 5
        exchange.send(address(echo), "digits", [call("ffn0.8")], deadline)
        assert echo.work_came.wait(5)
        echo.server.fail(echo.held[0], ExpertFailed("ffn0.8: ZeroDivisionError: division by zero", retry_after_s=0.25))
        answer = exchange.next_answer(deadline)
    assert answer is not None
    assert isinstance(answer.error, ExpertFailed)
    assert "ZeroDivisionError" in str(answer.error)
    assert answer.error.retry_after_s == 0.25


@pytest.fixture
def plain_echo() -> Iterator[Echo]:
    handler = Echo()
    handler.server = Server(
        Identity.generate(), "digits", handler, CLOCK, max_rows=10, max_bytes=1000, unencrypted=True
    )
    handler.server.start()
    yield handler
    handler.server.stop()


def plain_address(echo: Echo) -> PeerAddress:
    endpoint = f"{PLAIN_SCHEME}127.0.0.1:{echo.server.port}"
    return PeerAddress(echo.server._identity.public_key, (endpoint,), "brisk-heron")


def test_an_unencrypted_node_answers_callers_who_accept_that(plain_echo: Echo) -> None:
    pool = Connections(Identity.generate(), CLOCK, unencrypted=True)
    try:
        answer = ask(pool, plain_address(plain_echo), call("ffn0.2", b"b" * 3 * CHUNK_BYTES, PLAIN_CHUNK_BYTES))[0]
        assert [frame.bytes for frame in answer.tensors[0]] == [b"b" * 3 * CHUNK_BYTES]
        in_pieces = ask(pool, plain_address(plain_echo), call("ffn0.2", b"b" * 3 * CHUNK_BYTES))[0]
        assert isinstance(in_pieces.error, WireError)
    finally:
        pool.close()


def test_others_are_told_and_send_nothing(plain_echo: Echo, connections: Connections) -> None:
    answer = ask(connections, plain_address(plain_echo), call())[0]
    assert isinstance(answer.error, PeerUnreachable)
    assert "unencrypted=True" in answer.error.message
    assert plain_echo.seen == []


def test_an_unencrypted_caller_is_refused_by_an_encrypted_node(echo: Echo) -> None:
    pool = Connections(Identity.generate(), CLOCK, unencrypted=True)
    endpoint = f"{PLAIN_SCHEME}127.0.0.1:{echo.server.port}"
    try:
        answer = ask(pool, PeerAddress(echo.server._identity.public_key, (endpoint,), "x"), call(), timeout_s=1.0)[0]
        assert answer.error is not None
        assert echo.seen == []
    finally:
        pool.close()


def test_a_call_that_is_sent_again_keeps_its_id(echo: Echo, connections: Connections) -> None:
    work = call()
    deadline = CLOCK.monotonic_s() + 5
    with connections.exchange() as exchange:
        exchange.send(address(echo), "digits", [work], deadline)
        first = work.call_id
        assert exchange.next_answer(deadline) is not None
        exchange.send(address(echo), "digits", [work], deadline)
        answer = exchange.next_answer(deadline)
    assert answer is not None
    assert answer.error is None
    assert first == work.call_id == answer.call_id
    assert work.sent > work.first_sent


def test_a_message_of_more_parts_than_any_honest_one_ends_its_connection(
    echo: Echo, connections: Connections, stranger: zmq.Socket[bytes]
) -> None:
    stranger.send(greeting())
    decode_node(stranger.recv_multipart()[0])
    deadline = CLOCK.monotonic_s() + 5
    while not echo.server._guard.num_connections and CLOCK.monotonic_s() < deadline:
        ask(connections, address(echo), call())
    monitor = stranger.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    try:
        stranger.send_multipart([b"\x80"] * (MAX_PARTS + 1))
        assert monitor.poll(5_000)
    finally:
        stranger.disable_monitor()
        monitor.close()
    assert ask(connections, address(echo), call())[0].error is None
    assert echo.server.counters.malformed == 1


def test_a_second_connection_with_a_living_ones_routing_id_takes_its_place(
    echo: Echo, connections: Connections
) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    twins = [context.socket(zmq.DEALER) for _ in range(2)]
    try:
        for twin in twins:
            twin.setsockopt(zmq.LINGER, 0)
            twin.setsockopt(zmq.RECONNECT_IVL, -1)
            twin.setsockopt(zmq.ROUTING_ID, b"the same")
            twin.setsockopt(zmq.RCVTIMEO, 5_000)
            secure_caller(twin, STRANGER, echo.server._identity.public_key)
        for twin in twins:
            twin.connect(f"tcp://127.0.0.1:{echo.server.port}")
            twin.send(greeting())
            assert isinstance(decode_node(twin.recv_multipart()[0]), Welcome)
        twins[0].send_multipart([b"\x80"] * 3)
        assert ask(connections, address(echo), call())[0].error is None
        assert echo.server.counters.malformed == 0, "nothing is read of the first any more"
    finally:
        for twin in twins:
            twin.close()
        context.term()


def test_small_answers_that_are_ready_together_travel_together(echo: Echo, stranger: zmq.Socket[bytes]) -> None:
    """Failures among them, large tensors for themselves, and no header over its limit."""
    stranger.send(greeting())
    decode_node(stranger.recv_multipart()[0])
    works = tuple(Work(call_id, "ffn0.8", "forward", ()) for call_id in range(24))
    small = TensorSpec("float32", (4_096,))

    def answer_all() -> None:
        for ticket in echo.held:
            if ticket.call_id == 3:
                echo.server.answer(ticket, Failure(3, 203, "full"))
            elif ticket.call_id == 12:
                echo.server.answer(ticket, Reply(12, (small,), 0, 0, 0, 0.0), [bytes(16_384)])
            else:
                echo.server.answer(ticket, Reply(ticket.call_id, (small,), 0, 0, 0, 0.0, data=bytes(16_384)))
        echo.held.clear()

    echo.turn = answer_all
    stranger.send(encode(Request("digits", round(CLOCK.wall_s() * 1000), 5_000, works)))
    answered: list[int | None] = []
    num_messages = 0
    while len(answered) < len(works):
        header, *frames = stranger.recv_multipart()
        assert len(header) <= MAX_HEADER_BYTES
        message = decode_node(header)
        num_messages += 1
        assert not isinstance(message, Greeting | Welcome)
        answers = message.answers if isinstance(message, Answers) else (message,)
        answered += [answer.call_id for answer in answers]
        assert bool(frames) == (answered[-1] == 12)
    assert sorted(answered, key=str) == sorted(range(24), key=str)
    assert num_messages == 3  # twelve small ones, the large one, eleven small ones


def test_a_failure_of_everything_among_answers_is_a_wire_error(echo: Echo, connections: Connections) -> None:
    def answer_badly() -> None:
        for ticket in echo.held:
            echo.server._send(ticket.routing_id, Answers((Failure(None, 203, "full"),)))
        echo.held.clear()

    echo.turn = answer_badly
    answer = ask(connections, address(echo), call("ffn0.8"))[0]
    assert isinstance(answer.error, WireError)


def test_frames_after_a_header_that_has_none_are_a_wire_error(echo: Echo, connections: Connections) -> None:
    def answer_badly() -> None:
        for ticket in echo.held:
            echo.server._send(ticket.routing_id, Answers((Failure(ticket.call_id, 203, "full"),)), [b"more"])
        echo.held.clear()

    echo.turn = answer_badly
    answer = ask(connections, address(echo), call("ffn0.8"))[0]
    assert isinstance(answer.error, WireError)


def test_small_answers_without_end_to_a_caller_that_reads_nothing_are_bounded(echo: Echo) -> None:
    """The headers of 128 KiB count as large frames do."""
    unsent = echo.server._unsent
    for _ in range(3):
        unsent.add(b"deaf", zmq.MessageTracker(threading.Event()), unsent.limit_bytes // 2)
    before = echo.server.counters.dropped_answers
    echo.server._send(b"deaf", Reply(1, (), 0, 0, 0, 0.0, data=bytes(100_000)))
    assert echo.server.counters.dropped_answers == before + 1
