"""Which of this machine's addresses leads to another: a UDP socket that is only connected tells, and sends nothing."""

from __future__ import annotations

import socket

WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104 - what they are compared with
ANYWHERE = ("192.0.2.1", 9)  # reserved for documentation: nothing is sent there, only the route is asked for


def route_to(host: str, port: int) -> str | None:
    """Our own IPv4 address on the way there; None when there is no way."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
            ours: str = probe.getsockname()[0]
            return ours
    except OSError:
        return None
