"""What every test may use, and the guard that the run leaves nothing behind."""

import os
import socket
import threading
import time
from collections.abc import Generator, Iterator

import psutil
import pytest
from hypothesis import settings

GRACE_S = 5.0  # a pool's threads and a terminated child need a moment to go; more than this is a leak
# Python's own bookkeeper of shared memory, which lives as long as the interpreter.
BOOKKEEPERS = ("resource_tracker",)

settings.register_profile("dev", deadline=None)
# In CI a red test must mean a change of ours: the same examples every time, and no deadline on a busy machine.
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

_first_seen_in: dict[threading.Thread, str] = {}


@pytest.fixture
def free_tcp_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listened on a moment ago; where 0 is possible, use 0."""
    return _free_port(socket.SOCK_STREAM)


@pytest.fixture
def free_udp_port() -> int:
    """A UDP port of 127.0.0.1 that nobody listened on a moment ago; where 0 is possible, use 0."""
    return _free_port(socket.SOCK_DGRAM)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Fail the run when threads that would hold up the interpreter, or child processes, outlive the tests.

    It is set up before every other fixture of the session and so is torn down after them.
    """
    children_before = set(psutil.Process().children(recursive=True))
    yield
    deadline = time.monotonic() + GRACE_S
    while leaks := [*_leaked_threads(), *_leaked_children(children_before)]:
        if time.monotonic() > deadline:
            pytest.fail("left behind by the tests:\n  " + "\n  ".join(leaks), pytrace=False)
        time.sleep(0.05)


def pytest_runtest_logfinish(nodeid: str) -> None:
    """Remember which test a thread was first seen after, so that the guard can name it."""
    for thread in threading.enumerate():
        _first_seen_in.setdefault(thread, nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skipped test is a failed one, unless it needs a GPU: what silently does not run proves nothing."""
    report = yield
    if (
        report.skipped
        and not hasattr(report, "wasxfail")
        and os.environ.get("CI")
        and not item.get_closest_marker("gpu")
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


def _leaked_threads() -> list[str]:
    return [
        f"thread {thread.name!r}, first seen after {_first_seen_in.get(thread, 'the last test')}"
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.main_thread()
    ]


def _leaked_children(before: set[psutil.Process]) -> list[str]:
    leaks = []
    for child in set(psutil.Process().children(recursive=True)) - before:
        try:
            command = " ".join(child.cmdline())
        except psutil.NoSuchProcess:
            continue
        if not any(name in command for name in BOOKKEEPERS):
            leaks.append(f"process {child.pid}: {command or child.name()}")
    return leaks


def _free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
