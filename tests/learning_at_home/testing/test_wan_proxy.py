"""A line between real sockets: what it delays, keeps in order, holds back, loses and cuts."""

import contextlib
import random
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from learning_at_home.errors import ConfigError, UsageError
from learning_at_home.testing import Wan, WanProcess, WanProxy

TIMEOUT_S = 10.0


@contextlib.contextmanager
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets, one thread per connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65_536):
                connection.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(TIMEOUT_S)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), TIMEOUT_S)


def receive(connection: socket.socket, num_bytes: int) -> bytes:
    data = b""
    while len(data) < num_bytes:
        part = connection.recv(num_bytes - len(data))
        assert part, "the connection ended"
        data += part
    return data


def round_trip_s(connection: socket.socket, data: bytes = b"x") -> float:
    began = time.monotonic()
    connection.sendall(data)
    assert receive(connection, len(data)) == data
    return time.monotonic() - began


def test_a_round_trip_takes_both_ways_delay_and_the_first_one_the_handshake_too():
    with echo() as port, WanProxy("127.0.0.1", port, Wan(delay_s=0.05)) as proxy, connect(proxy.port) as connection:
        assert round_trip_s(connection) >= 0.2
        found = min(round_trip_s(connection) for _ in range(3))
        assert 0.1 <= found < 0.14
        proxy.change(Wan())
        assert min(round_trip_s(connection) for _ in range(20)) < 0.02, "it is a line without delay now"
        counters = proxy.counters
        assert (counters.connections, counters.open_connections) == (1, 1)
        assert counters.bytes_up == counters.bytes_down == 24
        assert counters.held_bytes == 0


def test_bandwidth_is_shared_and_nothing_is_changed_or_overtaken():
    data = random.Random(0).randbytes(400_000)
    wan = Wan(bytes_per_s=4e6, delay_s=0.005, jitter_s=0.02)
    with echo() as port, WanProxy("127.0.0.1", port, wan) as proxy:
        took: list[float] = []

        def call() -> None:
            with connect(proxy.port) as connection:
                took.append(round_trip_s(connection, data))

        threads = [threading.Thread(target=call) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        assert len(took) == 2, "both got what they sent"
        assert 0.2 <= max(took) < 0.9, "800,000 bytes at 4 MB/s each way, one after the other at worst"
        assert proxy.counters.bytes_up == 800_000


def test_a_reader_that_does_not_read_is_felt_by_the_sender():
    listener = socket.create_server(("127.0.0.1", 0))
    window = 256 * 1024
    wan = Wan(delay_s=0.01, window_bytes=window)
    with (
        listener,
        WanProxy("127.0.0.1", listener.getsockname()[1], wan) as proxy,
        connect(proxy.port) as sender,
        listener.accept()[0] as reader,
    ):
        sender.setblocking(False)
        sent = 0
        while select.select([], [sender], [], 0.5)[1]:
            sent += sender.send(bytes(65_536))
            assert sent < 64 * 2**20, "it takes without end"
        assert proxy.counters.most_held_bytes <= window + 256 * 1024, "a window and what one read brought"
        reader.settimeout(TIMEOUT_S)
        assert len(receive(reader, sent)) == sent, "and all of it arrives once it is read"


def test_a_stalled_line_holds_what_it_has_and_goes_on():
    with echo() as port, WanProxy("127.0.0.1", port) as proxy, connect(proxy.port) as connection:
        round_trip_s(connection)
        proxy.stall()
        connection.sendall(b"later")
        assert not select.select([connection], [], [], 0.1)[0]
        proxy.go_on()
        assert receive(connection, 5) == b"later"


def test_cut_connections_end_at_both_sides_and_new_ones_come():
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, WanProxy("127.0.0.1", listener.getsockname()[1]) as proxy, connect(proxy.port) as connection:
        node, _ = listener.accept()
        with node:
            node.settimeout(TIMEOUT_S)
            connection.sendall(b"x")
            assert node.recv(1) == b"x"
            assert proxy.cut() == 1
            for end in (connection, node):
                with contextlib.suppress(ConnectionResetError):
                    assert end.recv(1) == b""
        with connect(proxy.port) as again:
            node, _ = listener.accept()
            with node:
                node.sendall(b"y")
                assert again.recv(1) == b"y"
        assert proxy.counters.cut == 1


def test_the_end_of_a_stream_arrives_after_it_and_the_other_way_stays_open():
    listener = socket.create_server(("127.0.0.1", 0))
    with (
        listener,
        WanProxy("127.0.0.1", listener.getsockname()[1], Wan(delay_s=0.02)) as proxy,
        connect(proxy.port) as caller,
    ):
        with listener.accept()[0] as node:
            node.settimeout(TIMEOUT_S)
            caller.sendall(b"question")
            caller.shutdown(socket.SHUT_WR)
            assert receive(node, 8) == b"question"
            assert node.recv(1) == b""
            node.sendall(b"answer")
            assert receive(caller, 6) == b"answer"
        assert caller.recv(1) == b""


def test_a_caller_of_nobody_is_cut_off():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        WanProxy("127.0.0.1", port) as proxy,
        connect(proxy.port) as connection,
        contextlib.suppress(ConnectionResetError),
    ):
        assert connection.recv(1) == b""


def test_a_taken_port_is_told_and_a_closed_proxy_says_so():
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(ConfigError, match="listen"),
        WanProxy("127.0.0.1", 1, port=listener.getsockname()[1]),
    ):
        pass
    with WanProxy("127.0.0.1", 1) as proxy:
        pass
    with pytest.raises(UsageError, match="does not run"):
        proxy.cut()


def test_nothing_is_left_open():
    def num_descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not list a process's descriptors")
    listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        before = num_descriptors()
        threads = threading.active_count()
        with contextlib.ExitStack() as opened:
            proxy = opened.enter_context(WanProxy("127.0.0.1", listener.getsockname()[1], Wan(delay_s=30.0)))
            for _ in range(5):
                connection = opened.enter_context(connect(proxy.port))
                opened.enter_context(listener.accept()[0])
                connection.sendall(b"on its way for half a minute")
            opened.callback(proxy.close)
        assert num_descriptors() == before
        assert threading.active_count() == threads


def zmq_pair(context: zmq.Context, proxy: WanProxy, router: zmq.Socket) -> zmq.Socket:
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.setsockopt(zmq.RCVTIMEO, int(TIMEOUT_S * 1000))
    router.setsockopt(zmq.RCVTIMEO, int(TIMEOUT_S * 1000))
    router.setsockopt(zmq.LINGER, 0)
    dealer.connect(f"tcp://127.0.0.1:{proxy.port}")
    return dealer


def test_whole_messages_of_plain_zeromq_are_lost_and_counted():
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        with WanProxy("127.0.0.1", port, Wan(lost=0.3, seed=5)) as proxy, zmq_pair(context, proxy, router) as dealer:
            for number in range(100):
                dealer.send_multipart([b"%d" % number, bytes(1_000)])
            proxy_sees_all(proxy, 100)
            arrived = []
            while router.poll(200):
                _, head, data = router.recv_multipart()
                assert len(data) == 1_000
                arrived.append(int(head))
            assert arrived == sorted(arrived)
            assert arrived[0] == 0
            assert len(arrived) == 100 - proxy.counters.messages_lost
            assert 15 < proxy.counters.messages_lost < 45


def proxy_sees_all(proxy: WanProxy, num_messages: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while proxy.counters.messages < num_messages:
        assert time.monotonic() < deadline


def test_encrypted_messages_cannot_be_lost_and_the_proxy_says_so():
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        public, router.curve_secretkey = zmq.curve_keypair()
        router.curve_server = True
        proxy = WanProxy("127.0.0.1", router.bind_to_random_port("tcp://127.0.0.1"), Wan(lost=0.1)).__enter__()
        with context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.setsockopt(zmq.RECONNECT_IVL, -1)
            dealer.curve_publickey, dealer.curve_secretkey = zmq.curve_keypair()
            dealer.curve_serverkey = public
            ends = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            with dealer.get_monitor_socket(ends) as monitor:
                dealer.connect(f"tcp://127.0.0.1:{proxy.port}")
                assert monitor.poll(int(TIMEOUT_S * 1000)), "it was cut off"
                dealer.disable_monitor()
        with pytest.raises(UsageError, match="CURVE"):
            proxy.__exit__(None, None, None)


@pytest.mark.slow
def test_lines_in_a_process_of_their_own():
    with echo() as port, WanProcess() as lines:
        near, far = lines.open("127.0.0.1", port), lines.open("127.0.0.1", port, Wan(delay_s=0.03))
        with connect(lines.ports[near]) as to_near, connect(lines.ports[far]) as to_far:
            round_trip_s(to_far)
            assert round_trip_s(to_far) >= 0.06
            lines.change(Wan(delay_s=0.02), near)
            assert round_trip_s(to_near) >= 0.04
            assert lines.counters(far).bytes_up == 2
            lines.stall()
            to_far.sendall(b"x")
            assert not select.select([to_far], [], [], 0.1)[0]
            lines.go_on()
            assert receive(to_far, 1) == b"x"
            assert lines.cut() == 2
        with pytest.raises(UsageError, match="delay"):
            lines._ask("change", near, wan={"delay_s": -1})
