"""The kernel's counts of a connection, and ending one whose descriptor belongs to somebody else."""

from __future__ import annotations

import contextlib
import os
import resource
import socket as sockets
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from learning_at_home.transport.tcp_counters import TcpCounters, counts_received_bytes, neighbourhood

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's counts are read on Linux only")


@pytest.fixture
def counters() -> Iterator[TcpCounters]:
    counters = TcpCounters()
    yield counters
    counters.close()


@contextlib.contextmanager
def connection(host: str = "127.0.0.1") -> Iterator[tuple[sockets.socket, sockets.socket]]:
    """A connection over loopback: the caller's end, the node's end."""
    family = sockets.AF_INET6 if ":" in host else sockets.AF_INET
    with sockets.create_server((host, 0), family=family) as listener:
        near = sockets.create_connection(listener.getsockname()[:2], timeout=5.0)
        far, _ = listener.accept()
        far.settimeout(5.0)
        with near, far:
            yield near, far


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_this_system_counts():
    assert counts_received_bytes()


def test_received_bytes_are_counted_before_and_after_they_are_read(counters: TcpCounters):
    with connection() as (near, far):
        near.sendall(b"x" * 1_000)
        far.recv(400, sockets.MSG_WAITALL)
        far.recv(600, sockets.MSG_PEEK | sockets.MSG_WAITALL)

        assert counters.received_bytes(far.fileno()) == 1_000
        assert counters.unread_bytes(far.fileno()) == 600


def test_a_connection_is_told_by_its_port_and_peer(counters: TcpCounters):
    with connection() as (near, far):
        found = counters.find(far.fileno())

        assert found is not None
        assert (found.local_port, found.peer_host) == (far.getsockname()[1], "127.0.0.1")
        assert found != counters.find(near.fileno())
        assert counters.is_open(found)


def test_a_connection_over_ipv6_is_told_by_its_peer(counters: TcpCounters):
    try:
        with connection("::1") as (_, far):
            found = counters.find(far.fileno())
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")

    assert found is not None
    assert found.peer_host == "::1"


def test_the_peer_of_a_connection_that_is_shut_down_sees_its_end(counters: TcpCounters):
    with connection() as (near, far):
        found = counters.find(far.fileno())
        assert found is not None

        assert counters.shut_down(found)
        assert near.recv(1) == b""
        assert far.recv(1) == b""


def test_the_next_connection_with_the_same_number_is_left_alone(counters: TcpCounters):
    with connection() as (_, far), connection() as (innocent_near, innocent_far):
        found = counters.find(far.fileno())
        assert found is not None
        os.dup2(innocent_far.fileno(), far.fileno())

        assert not counters.is_open(found)
        assert not counters.shut_down(found)
        innocent_near.sendall(b"still here")
        assert innocent_far.recv(10, sockets.MSG_WAITALL) == b"still here"


def test_what_is_no_connection_has_no_counts(counters: TcpCounters, tmp_path: Path):
    one, other = sockets.socketpair()
    with one, other, sockets.socket() as unconnected, (tmp_path / "file").open("w") as file:
        numbers = [one.fileno(), unconnected.fileno(), file.fileno(), 1 << 20]

        assert [counters.find(number) for number in numbers] == [None] * 4
        assert counters.received_bytes(file.fileno()) is None
        assert counters.received_bytes(1 << 20) is None
        assert counters.unread_bytes(1 << 20) == 0


def test_a_connection_ends_although_no_descriptor_is_left(counters: TcpCounters):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with connection() as (near, far), contextlib.ExitStack() as opened:
        found = counters.find(far.fileno())
        assert found is not None
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(near.fileno(), far.fileno()) + 8, before[1]))
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        with contextlib.suppress(OSError):
            while True:
                opened.enter_context(open(os.devnull))  # noqa: PTH123
        with pytest.raises(OSError, match="Too many open files"):
            os.dup(far.fileno())

        assert counters.shut_down(found)
        assert near.recv(1) == b""


def test_looking_and_ending_leave_no_descriptor_open():
    before = open_descriptors()
    counters = TcpCounters()
    for _ in range(20):
        with connection() as (_, far):
            found = counters.find(far.fileno())
            assert found is not None
            counters.is_open(found)
            counters.shut_down(found)
    counters.close()

    assert open_descriptors() <= before


def test_a_look_does_not_keep_a_closed_connection_alive(counters: TcpCounters):
    with connection() as (near, far):
        found = counters.find(far.fileno())
        assert found is not None
        counters.is_open(found)
        far.close()

        assert near.recv(1) == b""
        assert not counters.shut_down(found)


@pytest.mark.parametrize(
    "host, expected",
    [
        ("198.51.100.7", "198.51.100.7"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_a_neighbourhood_is_what_one_party_is_likely_to_hold(host: str, expected: str):
    assert neighbourhood(host) == expected
