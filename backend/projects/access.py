"""What a peer needs to join, told by the address under which it reached us. Pure but for reading the request."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from starlette.requests import Request

from backend.coordinator import Coordinator
from learning_at_home.project import ProjectAccess, ProjectRecord
from learning_at_home.version import AGENT

# Who sends the Host header chooses what it says: only what can be an address is repeated.
_NAME = re.compile(r"(?=.{1,253}\Z)(?!-)[A-Za-z0-9_-]{1,63}(?:\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[^\[\]:]+)(?::(?P<port>[0-9]{1,5}))?")


def access_for(request: Request, coordinator: Coordinator, record: ProjectRecord) -> ProjectAccess:
    """The answer of /access: the DHT listens where the web server does, whatever name the peer knows it by.

    A public address that the owner gave goes before what the request says.
    """
    settings = coordinator.settings
    address = None if settings.public_url else reached_at(request.headers.get("host", ""))
    url = settings.url if address is None else f"{request.url.scheme}://{address}"
    host = urlsplit(url).hostname or settings.host
    bracketed = f"[{host}]" if ":" in host else host
    return ProjectAccess(
        record=record,
        coordinator_public_key=coordinator.public_key,
        bootstrap=(f"{bracketed}:{coordinator.eyes.dht_port}", *settings.bootstrap),
        your_address=request.client.host if request.client is not None else "",
        wall_s=coordinator.clock.wall_s(),
        dashboard_url=f"{url}/p/{record.id}",
        agent=AGENT,
    )


def reached_at(host_header: str) -> str | None:
    """The host and port of a Host header; None when it is none that a URL could have."""
    match = _HOST.fullmatch(host_header)
    if match is None or not 0 < int(match["port"] or 80) <= 65_535:
        return None
    if not match["host"].startswith("[") and not _NAME.fullmatch(match["host"]):
        return None
    try:
        urlsplit(f"http://{host_header}")
    except ValueError:  # brackets around what is no IPv6 address
        return None
    return host_header
