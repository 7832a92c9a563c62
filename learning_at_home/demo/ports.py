"""Finding a TCP port for the demo's coordinator."""

from __future__ import annotations

import contextlib
import socket

HOST = "127.0.0.1"


def is_free(port: int) -> bool:
    """Whether a server could listen on it now. Ports that a closed server left in TIME_WAIT count as free."""
    with contextlib.suppress(OSError), _bound(port):
        return True
    return False


def free_port(preferred: int) -> int:
    """The preferred port when it is free (0: none is preferred), else one that the system picks."""
    if preferred and is_free(preferred):
        return preferred
    with _bound(0) as listener:
        port: int = listener.getsockname()[1]
        return port


def _bound(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
    except OSError:
        listener.close()
        raise
    return listener
