"""A process that ends with the one that started it, however that one ended: it watches its standard input.

The parent keeps the other end of the pipe open and never writes. The kernel closes that end even when the parent is
killed (SIGKILL), which no signal handler and no `finally` of the parent could do. Works on every platform with pipes.
Threaded: one daemon thread that only reads; it holds nothing that would need a join, and a read of a pipe cannot be
called off, so at a normal end the interpreter leaves it behind.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable

STDIN = 0
EXIT_GRACE_S = 8.0  # a node withdraws and finishes a batch in under 2 s; after this nobody waits for it
EXIT_ORPHANED = 70  # EX_SOFTWARE of sysexits.h: the stop was asked for and did not end the process

log = logging.getLogger(__name__)


def terminate_this_process() -> None:
    """A `stop` for programs that end cleanly on SIGTERM."""
    os.kill(os.getpid(), signal.SIGTERM)


def exit_when_stdin_closes(stop: Callable[[], None] = terminate_this_process) -> None:
    """Call `stop` once standard input is at its end; leave by force if the process still runs EXIT_GRACE_S later.

    Returns at once. `stop` runs on a thread of its own and must be safe to call from there, as
    `loop.call_soon_threadsafe(...)`, `event.set` and `terminate_this_process` are. What arrives on stdin is ignored.
    """
    threading.Thread(target=_watch, args=(stop,), name="parent-watch", daemon=True).start()


def _watch(stop: Callable[[], None]) -> None:
    with contextlib.suppress(OSError):  # no stdin at all: there is no parent to outlive
        while os.read(STDIN, 4_096):
            pass
    log.info("the process that started this one is gone: stopping")
    try:
        stop()
    finally:
        threading.Event().wait(EXIT_GRACE_S)  # a daemon thread: an orderly end of the process ends this wait too
        os._exit(EXIT_ORPHANED)
