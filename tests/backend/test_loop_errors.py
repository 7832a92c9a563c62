"""What the process says and allows when descriptors are short."""

import asyncio
import errno
import resource

from backend.cli import LoopErrors
from backend.descriptors import MAX_CONNECTIONS, max_connections, max_websockets, raise_descriptor_limit


async def test_a_shortage_of_descriptors_is_one_line_and_no_traceback(caplog):
    handle, loop = LoopErrors(), asyncio.get_running_loop()
    for _ in range(100):
        handle(loop, {"message": "socket.accept() out of system resource", "exception": OSError(errno.EMFILE, "")})

    assert len(caplog.records) == 1
    assert caplog.records[0].exc_info is None


async def test_other_errors_of_the_loop_are_told_with_their_traceback(caplog):
    LoopErrors()(asyncio.get_running_loop(), {"message": "a bug", "exception": RuntimeError("here")})

    assert len(caplog.records) == 1
    assert caplog.records[0].exc_info


def test_connections_leave_descriptors_for_the_rest():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        raise_descriptor_limit()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == hard == before[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (1_024, hard))
        assert (max_connections(), max_websockets()) == (768, 640)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert 64 <= max_connections() <= MAX_CONNECTIONS
