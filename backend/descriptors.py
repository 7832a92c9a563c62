"""How many files, sockets among them, this process may open. Plain code over the system's limits."""

from __future__ import annotations

import contextlib
import sys

if sys.platform != "win32":
    import resource

MAX_CONNECTIONS = 12_000  # over it requests get a 503
DESCRIPTORS_KEPT = 256  # for the database, the DHT and the calls that probe
WEBSOCKET_SHARE = 5 / 6  # of the connections: pages are served while all places of nodes and browsers are taken


def raise_descriptor_limit() -> None:
    """As many descriptors as we may have: each browser, node and trainer takes one, and the usual 1,024 are few."""
    if sys.platform == "win32":  # it has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # some systems say that there is no limit, and have one
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def max_connections() -> int:
    """How many connections leave descriptors for everything else."""
    if sys.platform == "win32":
        return MAX_CONNECTIONS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(64, min(MAX_CONNECTIONS, soft - DESCRIPTORS_KEPT))


def max_websockets() -> int:
    """How many of these may be websockets."""
    return int(max_connections() * WEBSOCKET_SHARE)
