"""A guarded ROUTER over real sockets: floods that do not end are cut off, honest callers notice nothing."""

from __future__ import annotations

import contextlib
import os
import select
import socket as sockets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from learning_at_home.identity import Identity
from learning_at_home.transport.authentication import Authenticator
from learning_at_home.transport.inflow import InflowGuard
from learning_at_home.transport.inflow_accounts import (
    FRAME_BYTES,
    HEARTBEAT_BYTES_PER_S,
    MIB,
    UNNOTICED_BYTES,
    Cut,
    InflowLimits,
)
from learning_at_home.transport.socket_options import HEARTBEAT_MS, bound, secure_caller, secure_server
from learning_at_home.transport.tcp_counters import TcpCounters
from learning_at_home.wire.messages import CHUNK_BYTES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's counts are read on Linux only")

SMALL = InflowLimits(connection_bytes=8 * MIB, total_bytes=32 * MIB)
KEPT_FRAMES = 2_000  # of one message; what follows is read and dropped, as a frame costs more in Python than in libzmq
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


class Node:
    """A thread that owns a guarded ROUTER and answers each message with its size, as the server's thread does."""

    def __init__(
        self, limits: InflowLimits, *, curve: bool = True, reads: bool = True, heartbeat_ms: int = HEARTBEAT_MS
    ) -> None:
        self.identity = Identity.generate()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._authenticator = Authenticator(self.context)
        self._router = self.context.socket(zmq.ROUTER)
        bound(self._router)
        self._router.setsockopt(zmq.HEARTBEAT_IVL, heartbeat_ms)
        if curve:
            secure_server(self._router, self.identity)
        self._router.setsockopt(zmq.BACKLOG, 1_000)  # a test connects faster than this thread may run,
        self._router.setsockopt(zmq.HANDSHAKE_IVL, 60_000)  # and a flood delays the handshakes of the rest
        self.guard = InflowGuard(self._router, limits)
        self._router.bind("tcp://127.0.0.1:*")
        self.endpoint = self._router.getsockopt_string(zmq.LAST_ENDPOINT)
        self.port = int(self.endpoint.rsplit(":", 1)[1])
        self.cuts: list[Cut] = []
        self.ended: list[bool] = []
        self.most_held = 0
        self.resident_before = resident_bytes()
        self.most_resident = 0
        self.error: BaseException | None = None
        self.reads = reads
        self._looked = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Node:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        assert self.error is None

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Return when it holds after a look; fail when that takes too long."""
        with self._looked:
            assert self._looked.wait_for(condition, timeout_s)

    def caller(self, context: zmq.Context[zmq.Socket[bytes]], heartbeat_ms: int = HEARTBEAT_MS) -> zmq.Socket[bytes]:
        caller = context.socket(zmq.DEALER)
        bound(caller)
        caller.setsockopt(zmq.HEARTBEAT_IVL, heartbeat_ms)
        caller.setsockopt(zmq.RECONNECT_IVL, -1)
        secure_caller(caller, Identity.generate(), self.identity.public_key)
        caller.connect(self.endpoint)
        return caller

    @property
    def growth(self) -> int:
        return self.most_resident - self.resident_before

    def _run(self) -> None:
        try:
            poller = zmq.Poller()
            poller.register(self._authenticator.socket, zmq.POLLIN)
            if self.reads:
                poller.register(self._router, zmq.POLLIN)
            while not self._stopping.is_set():
                for ready, _ in poller.poll(self.guard.timeout_ms(time.monotonic())):
                    if ready is self._router:
                        self._read_all()
                    else:
                        self._authenticator.answer_all()
                self.most_resident = max(self.most_resident, resident_bytes())
                with self._looked:
                    self.cuts += self.guard.look(time.monotonic())
                    self.most_held = max(self.most_held, self.guard.held_bytes)
                    self._looked.notify_all()
        except BaseException as error:  # noqa: BLE001 - the test's own thread reports it
            self.error = error
        finally:
            self.guard.close()
            self._router.close()
            self._authenticator.socket.close()
            self.context.term()

    def _read_all(self) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                routing_id = self._router.recv(zmq.NOBLOCK)
                frame = self._router.recv(copy=False)
                num_bytes, num_frames = len(frame), 1
                kept = [frame]
                while frame.more:
                    frame = self._router.recv(copy=False)
                    num_bytes += len(frame)
                    num_frames += 1
                    if num_frames <= KEPT_FRAMES:
                        kept.append(frame)
                self.guard.received(frame, num_bytes, num_frames)
                if num_frames > KEPT_FRAMES:
                    self.ended.append(self.guard.end(frame))
                self._router.send_multipart([routing_id, str(num_bytes).encode()], zmq.NOBLOCK)


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(linger=0)


def raw_connection(node: Node) -> sockets.socket:
    """A connection without encryption, through ZMTP's handshake (RFC 23) as a DEALER."""
    raw = sockets.create_connection(("127.0.0.1", node.port), timeout=20.0)
    raw.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
    command = b"\x05READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
    raw.sendall(b"\x04" + bytes([len(command)]) + command)
    raw.recv(64, sockets.MSG_WAITALL)
    raw.recv(raw.recv(2, sockets.MSG_WAITALL)[1], sockets.MSG_WAITALL)
    return raw


def send_until_cut(raw: sockets.socket, parts: bytes) -> int:
    """How many bytes of a message without an end were sent before the connection ended."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        while True:
            raw.sendall(parts)
            sent += len(parts)
    return sent


# A hundred encrypted connections that each begin one message of 200 MiB; says how many were cut off, and ends. libzmq
# keeps a sender's parts until its message is complete, so it is: all parts are one buffer, and none gets to the last.
FLOOD = """
import sys, zmq
from learning_at_home.identity import Identity
from learning_at_home.transport.socket_options import bound, secure_caller
endpoint, public_key, identity = sys.argv[1], bytes.fromhex(sys.argv[2]), Identity.generate()
context, poller, chunk = zmq.Context(), zmq.Poller(), bytes(1 << 20)
sending = []
for _ in range(100):
    socket = context.socket(zmq.DEALER)
    bound(socket)
    socket.setsockopt(zmq.RECONNECT_IVL, -1)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 60_000)
    secure_caller(socket, identity, public_key)
    poller.register(socket.get_monitor_socket(zmq.EVENT_DISCONNECTED), zmq.POLLIN)
    socket.connect(endpoint)
    socket.send_multipart([chunk] * 200, copy=False)
    sending.append(socket)
num_cut = 0
while num_cut < 100:
    for monitor, _ in poller.poll():
        poller.unregister(monitor)
        num_cut += 1
print(num_cut, flush=True)
context.destroy(linger=0)
"""


@pytest.mark.slow
def test_a_hundred_messages_that_never_end_are_cut_off_while_an_honest_caller_goes_on(context):
    with Node(SMALL) as node, node.caller(context) as honest:
        command = [sys.executable, "-c", FLOOD, node.endpoint, node.identity.public_key.hex()]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as flood:
            num_calls = 0
            while flood.poll() is None and node.growth < 1_024 * MIB:
                honest.send_multipart([b"call", bytes(4_000)])
                assert honest.poll(10_000), "the honest call was not answered"
                assert honest.recv() == b"4004"
                num_calls += 1
            flood.kill()
            assert flood.stdout is not None
            assert flood.stdout.read() == "100\n"
        node.wait_until(lambda: node.guard.num_connections == 1)

        assert len(node.cuts) == 100
        assert num_calls >= 10
        # What comes between two looks is on top of the bound; the looks are late when both cores are busy.
        assert node.growth < SMALL.total_bytes + 400 * MIB
        assert node.guard.held_bytes <= UNNOTICED_BYTES


@pytest.mark.slow
def test_the_largest_request_passes_uncut(context):
    chunk = bytes(CHUNK_BYTES)
    with Node(InflowLimits()) as node, node.caller(context) as honest:
        for _ in range(2):
            honest.send_multipart([b"head", *[chunk] * 128], copy=False)
            assert honest.poll(30_000)
            assert honest.recv() == str(4 + 128 * CHUNK_BYTES).encode()
        node.wait_until(lambda: node.guard.held_bytes <= UNNOTICED_BYTES)

        assert node.most_held > 8 * MIB  # it was seen under way
        assert node.cuts == []


def test_complete_messages_that_the_node_has_no_time_to_read_are_bounded_too(context):
    with Node(SMALL, reads=False) as node, node.caller(context) as sender:
        monitor = sender.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        with contextlib.suppress(zmq.Again):  # it has been cut off already
            for _ in range(40):
                sender.send(bytes(CHUNK_BYTES), zmq.NOBLOCK)

        assert monitor.poll(20_000)
        node.wait_until(lambda: bool(node.cuts))
        assert [cut.reason for cut in node.cuts] == ["connection"]
        monitor.close()


@pytest.mark.parametrize("size", [0, 34, 64_000])
def test_an_endless_message_without_encryption_is_cut_off_whatever_its_parts(size: int):
    header = b"\x01" + bytes([size]) if size < 256 else b"\x03" + size.to_bytes(8, "big")
    parts = (header + bytes(size)) * max(1, 16_000 // (size + 2))
    with Node(InflowLimits(connection_bytes=MIB, total_bytes=4 * MIB), curve=False) as node:
        with raw_connection(node) as raw:
            sent = send_until_cut(raw, parts)
        node.wait_until(lambda: len(node.cuts) == 1)

        assert sent > MIB
        assert node.guard.held_bytes == 0


def test_who_breaks_a_rule_on_purpose_is_cut_off_and_nobody_else(context):
    with Node(SMALL) as node, node.caller(context) as honest, node.caller(context) as sender:
        for caller in (honest, sender):
            caller.send(b"here")
            assert caller.poll(10_000)
            caller.recv()
        node.wait_until(lambda: node.guard.num_connections == 2)
        monitor = sender.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        sender.send_multipart([b""] * (KEPT_FRAMES + 1))

        assert monitor.poll(10_000)
        node.wait_until(lambda: node.guard.num_connections == 1)
        honest.send(b"still there")
        assert honest.poll(10_000)
        assert node.ended == [True]
        assert node.cuts == []
        monitor.close()


def test_a_connection_that_speaks_another_protocol_is_ended_by_libzmq_and_forgotten():
    with Node(SMALL, curve=False) as node:
        with sockets.create_connection(("127.0.0.1", node.port), timeout=20.0) as stranger:
            node.wait_until(lambda: node.guard.num_connections == 1)
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
            select.select([stranger], [], [], 20.0)
        node.wait_until(lambda: node.guard.num_connections == 0)

        assert node.cuts == []


@pytest.mark.slow
def test_a_thousand_connects_and_disconnects_leave_no_descriptor_and_no_account(context):
    def open_descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with Node(SMALL) as node, node.caller(context) as honest:
        honest.send(b"first")
        assert honest.poll(10_000)
        before = open_descriptors()
        for round_ in range(25):
            burst = [sockets.create_connection(("127.0.0.1", node.port), timeout=20.0) for _ in range(40)]
            for position, raw in enumerate(burst):
                if position % 2:  # these end with bytes unread: a reset, not an end
                    raw.sendall(bytes(round_))
                raw.close()
        node.wait_until(lambda: node.guard.num_connections == 1 and open_descriptors() <= before)

        honest.send(b"still there")
        assert honest.poll(10_000)
        assert node.cuts == []
        assert node.guard.held_bytes <= UNNOTICED_BYTES


def test_the_guard_leaves_no_descriptor_and_no_thread_of_its_own():
    def made_and_closed() -> int:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        router = context.socket(zmq.ROUTER)
        guard = InflowGuard(router)
        router.bind("tcp://127.0.0.1:*")
        guard.look(1.0)
        guard.close()
        guard.close()
        router.close()
        context.term()
        return len(list(Path("/proc/self/fd").iterdir()))

    first = made_and_closed()

    assert max(made_and_closed() for _ in range(5)) <= first


@pytest.mark.parametrize("size", [0, 1, 200, 300, 70_000, CHUNK_BYTES])
def test_credit_covers_what_encryption_and_framing_add_and_little_more(context, size: int):
    """Else the estimate of an honest connection would climb until it is cut off, or a flood hide behind its credit."""
    num_messages = 20
    with Node(SMALL) as node, node.caller(context) as caller:
        for _ in range(num_messages):
            caller.send_multipart([b"head", bytes(size)])
            assert caller.poll(10_000)
            caller.recv()
        node.wait_until(lambda: node.guard.num_connections == 1)
        received = received_bytes(node)
        credit = num_messages * (4 + size + 2 * FRAME_BYTES)

        assert received - 2_048 < credit  # 2,048: the handshake, and a heartbeat or two
        assert credit < received + num_messages * 2 * 7


def test_credit_covers_the_heartbeats_of_an_idle_connection(context):
    """Heartbeats run a hundred times as fast here."""
    often_ms = HEARTBEAT_MS // 100
    with Node(SMALL, heartbeat_ms=often_ms) as node, node.caller(context, heartbeat_ms=often_ms) as caller:
        caller.send(b"here")
        assert caller.poll(10_000)
        node.wait_until(lambda: node.guard.num_connections == 1)
        began, first = time.monotonic(), received_bytes(node)
        node.wait_until(lambda: received_bytes(node) > first + 500)
        rate = (received_bytes(node) - first) / (time.monotonic() - began)

    assert rate / 100 < HEARTBEAT_BYTES_PER_S


def received_bytes(node: Node) -> int:
    """By the kernel's count, on the node's only connection."""
    (descriptor,) = node.guard._watched
    counters = TcpCounters()
    try:
        return counters.received_bytes(descriptor) or 0
    finally:
        counters.close()


def test_a_system_that_does_not_count_is_told_once_and_served_unguarded(monkeypatch, caplog):
    monkeypatch.setattr("learning_at_home.transport.inflow.counts_received_bytes", lambda: False)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        guard = InflowGuard(router)

        assert not guard.works
        assert guard.timeout_ms(5.0) == -1
        assert guard.look(5.0) == ()
        guard.close()
    assert len(caplog.records) == 1


def test_an_attack_does_not_fill_the_log(caplog, monkeypatch):
    monkeypatch.setattr("learning_at_home.transport.inflow.LOG_S", 1_000.0)
    with Node(InflowLimits(connection_bytes=MIB, total_bytes=4 * MIB), curve=False) as node:
        for _ in range(3):
            with raw_connection(node) as raw:
                send_until_cut(raw, b"\x01\xff" + bytes(255))
        node.wait_until(lambda: len(node.cuts) == 3)

    assert len(caplog.records) == 1
    assert "cut off 1 connections from 127.0.0.1" in caplog.text
