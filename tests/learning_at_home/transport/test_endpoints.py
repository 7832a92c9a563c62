"""Which endpoint of several is tried: first what was measured, as a table, then over real sockets."""

from __future__ import annotations

import socket as sockets
from collections.abc import Iterator

import pytest

from learning_at_home.errors import PeerUnreachable
from learning_at_home.identity import Identity
from learning_at_home.peer_address import PLAIN_SCHEME, PeerAddress
from learning_at_home.testing import ManualClock
from learning_at_home.transport import endpoints
from learning_at_home.transport.calls import Call
from learning_at_home.transport.connections import WELCOME_S, Connections
from learning_at_home.transport.endpoints import AVOIDED_S, EndpointBook
from learning_at_home.transport.link import usable_endpoints
from learning_at_home.transport.server import Server, TensorFrame, Ticket
from learning_at_home.wire.messages import Reply, TensorSpec, Work

PEER = b"p" * 32
HOME, ABROAD, RELAY = "tcp://192.168.0.2:1", "tcp://203.0.113.5:1", "tcp://198.51.100.7:1"
ALL = [HOME, ABROAD, RELAY]


def test_what_nobody_measured_is_tried_in_the_peers_order():
    assert EndpointBook().best(PEER, ALL, now=0.0) == HOME


def test_the_one_of_the_shortest_round_trip_goes_first():
    book = EndpointBook()
    book.welcomed(PEER, RELAY, 0.2)
    assert book.best(PEER, ALL, now=1.0) == RELAY, "it has answered; of the others nobody knows"
    book.welcomed(PEER, ABROAD, 0.05)
    book.welcomed(PEER, ABROAD, 0.5)  # once, behind something

    assert book.best(PEER, ALL, now=1.0) == ABROAD
    assert book.best(b"q" * 32, ALL, now=1.0) == HOME


def test_one_that_failed_is_tried_last_for_a_while_and_again_once_it_welcomes():
    book = EndpointBook()
    book.welcomed(PEER, ABROAD, 0.05)
    book.failed(PEER, ABROAD, now=10.0)
    assert book.best(PEER, ALL, now=11.0) == HOME
    book.failed(PEER, HOME, now=11.0)
    assert book.best(PEER, ALL, now=12.0) == RELAY
    book.failed(PEER, RELAY, now=12.0)
    assert book.best(PEER, ALL, now=13.0) == ABROAD, "all have failed: the one for which that is longest ago"

    assert book.best(PEER, ALL, now=12.0 + AVOIDED_S) == ABROAD
    book.failed(PEER, ABROAD, now=100.0)
    book.welcomed(PEER, ABROAD, 0.05)
    assert book.best(PEER, ALL, now=100.0) == ABROAD


def test_a_book_of_many_peers_forgets_the_first(monkeypatch):
    monkeypatch.setattr(endpoints, "MAX_PEERS", 2)
    book = EndpointBook()
    for name in (b"a", b"b", b"c"):
        book.failed(name, HOME, now=0.0)

    assert [book.best(name, ALL, now=1.0) for name in (b"a", b"b", b"c")] == [HOME, ABROAD, ABROAD]


def test_encrypted_endpoints_go_before_plain_ones():
    plain = f"{PLAIN_SCHEME}127.0.0.1:2"
    assert usable_endpoints(PeerAddress(PEER, (plain, HOME, ABROAD), "heron"), unencrypted=True) == [HOME, ABROAD]
    assert usable_endpoints(PeerAddress(PEER, (plain,), "heron"), unencrypted=True) == [plain]
    with pytest.raises(PeerUnreachable, match="unencrypted=True"):
        usable_endpoints(PeerAddress(PEER, (plain,), "heron"), unencrypted=False)
    with pytest.raises(PeerUnreachable, match="no tcp"):
        usable_endpoints(PeerAddress(PEER, ("udp://127.0.0.1:2",), "heron"), unencrypted=True)


class Echo:
    """Answers each work with its own tensors."""

    server: Server

    def on_work(self, ticket: Ticket, work: Work, frames: list[list[TensorFrame]]) -> None:
        answer = [bytes(memoryview(frame)) for tensor in frames for frame in tensor]  # type: ignore[arg-type]
        self.server.answer(ticket, Reply(ticket.call_id, work.tensors, 1, 2, 3, 0.5), answer)

    def work_here(self) -> bool:
        return False


@pytest.fixture
def node() -> Iterator[tuple[Identity, int]]:
    identity, echo = Identity.generate(), Echo()
    server = Server(identity, "digits", echo, ManualClock(), max_rows=64, max_bytes=1 << 20)
    echo.server = server
    server.start()
    yield identity, server.port
    server.stop()


@pytest.fixture
def deaf() -> Iterator[int]:
    """The port of somebody who accepts connections and says nothing."""
    with sockets.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def refused_port() -> int:
    with sockets.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def call() -> Call:
    return Call("ffn0.1", "forward", (TensorSpec("float32", (1,)),), [b"\0" * 4])


def test_after_a_refused_connection_the_next_endpoint_is_tried_and_remembered(node):
    identity, port = node
    peer = PeerAddress(identity.public_key, (f"tcp://127.0.0.1:{refused_port()}", f"tcp://127.0.0.1:{port}"), "heron")
    clock = ManualClock()
    connections = Connections(Identity.generate(), clock)
    errors = []
    try:
        for _ in range(2):
            with connections.exchange() as exchange:
                exchange.send(peer, "digits", [call()], clock.monotonic_s() + 10.0)
                answer = exchange.next_answer(clock.monotonic_s() + 10.0)
                assert answer is not None
                errors.append(type(answer.error))
        with connections.exchange(), connections.exchange() as another:  # with links of its own
            another.send(peer, "digits", [call()], clock.monotonic_s() + 10.0)
            answer = another.next_answer(clock.monotonic_s() + 10.0)
    finally:
        connections.close()

    assert errors == [PeerUnreachable, type(None)]
    assert answer is not None
    assert answer.error is None


def test_a_connection_that_hangs_is_given_up_for_another_endpoint_though_nobody_waited_for_its_deadline(node, deaf):
    identity, port = node
    peer = PeerAddress(identity.public_key, (f"tcp://127.0.0.1:{deaf}", f"tcp://127.0.0.1:{port}"), "heron")
    clock = ManualClock()
    connections = Connections(Identity.generate(), clock)
    try:
        with connections.exchange() as exchange:
            exchange.send(peer, "digits", [call()], clock.monotonic_s() + 60.0)
            assert exchange.next_answer(clock.monotonic_s()) is None  # the round ends: others have answered
        clock.advance(WELCOME_S + 0.1)
        with connections.exchange() as exchange:
            exchange.send(peer, "digits", [call()], clock.monotonic_s() + 60.0)
            answer = exchange.next_answer(clock.monotonic_s() + 30.0)
    finally:
        connections.close()

    assert answer is not None
    assert answer.error is None
