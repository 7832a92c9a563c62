"""End a process whose work is done, without taking its modules apart first."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """Exit at once with this code, after the output is flushed. For a program's last line: all must be closed.

    The interpreter's own end takes torch apart object by object: a second of computing for each process, measured, and
    several when the six of a demo end together on two cores. The person who pressed Ctrl-C waits for that.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # nobody reads it any more, or it is closed
            code = code or 1
    os._exit(code)
