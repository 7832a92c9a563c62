"""Ten thousand connects and disconnects, of every kind: nothing of them stays in the node, and others are served."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import time

import psutil
import pytest
import torch

from learning_at_home.identity import Identity
from tests.faults.gate import until
from tests.faults.process_node import ProcessSwarm
from tests.faults.raw_caller import RawCaller, request
from tests.faults.rounds import FULL, LIMIT_S
from tests.learning_at_home.client.small_swarm import FROZEN, layer

NUM_CONNECTIONS = 10_000 if FULL else 600
WARM_UP = 200
AT_ONCE = 25
MOST_GROWTH_BYTES = (32 if FULL else 16) * 1024 * 1024
ZMTP_GREETING = b"\xff\0\0\0\0\0\0\0\1\x7f\3\1CURVE" + bytes(48)  # of a caller; the handshake would follow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT_S)]


@pytest.fixture(scope="module")
def node(processes) -> ProcessSwarm:
    return processes(layer((1,), hidden_size=6, optimizer=FROZEN))


class Visitors:
    """Connections that come, do one of the things that go wrong, and leave."""

    def __init__(self, public_key: bytes, endpoint: str, seed: int) -> None:
        self._public_key = public_key
        self._endpoint = endpoint
        self._place = ("127.0.0.1", int(endpoint.rsplit(":", 1)[1]))
        self._random = random.Random(seed)
        self._kinds = itertools.cycle(
            [self._knock, self._talk_nonsense, self._stop_half_way, self._greet, self._mistake, self._leave_early]
        )

    def come(self, number: int) -> None:
        """So many, a few at a time."""
        for start in range(0, number, AT_ONCE):
            with contextlib.ExitStack() as open_at_once:
                for _ in range(start, min(number, start + AT_ONCE)):
                    next(self._kinds)(open_at_once)

    def _knock(self, stack: contextlib.ExitStack) -> None:
        stack.enter_context(socket.create_connection(self._place))

    def _talk_nonsense(self, stack: contextlib.ExitStack) -> None:
        stack.enter_context(socket.create_connection(self._place)).sendall(self._random.randbytes(200))

    def _stop_half_way(self, stack: contextlib.ExitStack) -> None:
        """The handshake's first bytes, cut anywhere."""
        cut = self._random.randrange(1, len(ZMTP_GREETING) + 1)
        stack.enter_context(socket.create_connection(self._place)).sendall(ZMTP_GREETING[:cut])

    def _greet(self, stack: contextlib.ExitStack) -> None:
        stack.enter_context(RawCaller(self._public_key, self._endpoint)).greet()

    def _mistake(self, stack: contextlib.ExitStack) -> None:
        """It believes to speak with somebody else: the handshake fails."""
        caller = stack.enter_context(RawCaller(Identity.generate().public_key, self._endpoint))
        caller.send([caller.greeting()])

    def _leave_early(self, stack: contextlib.ExitStack) -> None:
        """It asks and does not wait for the answer."""
        caller = stack.enter_context(RawCaller(self._public_key, self._endpoint))
        caller.send([caller.greeting()])
        caller.receive()
        caller.send(request("test", "ffn0.0", "forward", torch.zeros(3, 6, dtype=torch.float64)))


def test_connections_that_come_and_go_leave_nothing_in_the_node(node, seed, figure) -> None:
    address, process = node.address(), node.process()
    visitors = Visitors(address.public_key, address.endpoints[0], seed)
    x = torch.randn(3, 6, dtype=torch.float64)
    with node.connect() as swarm:
        expert = swarm.expert("ffn0.0")
        expected = expert(x)
        descriptors = process.num_fds()
        visitors.come(WARM_UP)
        until(lambda: process.num_fds() <= descriptors, "the first visitors' descriptors are closed")
        threads, rss = process.num_threads(), process.memory_info().rss
        started = time.monotonic()

        visitors.come(NUM_CONNECTIONS)

        took_s = time.monotonic() - started
        torch.testing.assert_close(expert(x), expected)
        until(lambda: process.num_fds() <= descriptors, "every visitor's descriptor is closed")
        grown = process.memory_info().rss - rss
        figure("connections", NUM_CONNECTIONS)
        figure("connections per second", NUM_CONNECTIONS / took_s)
        figure("memory grown, MB", grown / 1e6)
        figure("descriptors left", process.num_fds() - descriptors)
        assert process.num_threads() <= threads
        assert grown < MOST_GROWTH_BYTES
        assert swarm.stats().failures == 0


def test_a_node_without_descriptors_serves_those_who_are_there_and_recovers(node, figure) -> None:
    """More connections than it may open, that only stay: it neither ends nor forgets its callers."""
    address, process = node.address(), node.process()
    place = ("127.0.0.1", int(address.endpoints[0].rsplit(":", 1)[1]))
    x = torch.randn(3, 6, dtype=torch.float64)
    with node.connect() as swarm, contextlib.ExitStack() as stack:
        expert = swarm.expert("ffn0.0")
        expected = expert(x)
        limits = process.rlimit(psutil.RLIMIT_NOFILE)
        few = process.num_fds() + 50
        stack.callback(process.rlimit, psutil.RLIMIT_NOFILE, limits)
        process.rlimit(psutil.RLIMIT_NOFILE, (few, limits[1]))
        with contextlib.ExitStack() as open_at_once:
            for _ in range(100):
                open_at_once.enter_context(socket.create_connection(place))
            until(lambda: process.num_fds() >= few, "the node has no descriptor left")
            before = process.cpu_times()
            started = time.monotonic()
            for _ in range(100):
                torch.testing.assert_close(expert(x), expected)
            took_s = time.monotonic() - started
            after = process.cpu_times()
        figure("ms of a call meanwhile", took_s * 10)
        figure("of the time the node's processors", (sum(after[:2]) - sum(before[:2])) / took_s)
        assert swarm.stats().failures == 0
        until(lambda: process.num_fds() <= few - 50, "the descriptors are free again")
        with node.connect() as another:
            torch.testing.assert_close(another.expert("ffn0.0")(x), expected)
    assert node.is_alive()
