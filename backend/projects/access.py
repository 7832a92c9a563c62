"""What a peer needs to join, told by the address under which it reached us. Pure but for reading the request."""

from __future__ import annotations

from starlette.requests import Request

from backend.coordinator import Coordinator
from learning_at_home.project import ProjectAccess, ProjectRecord


def access_for(request: Request, coordinator: Coordinator, record: ProjectRecord) -> ProjectAccess:
    """The answer of /access: the DHT listens where the web server does, whatever name the peer knows it by."""
    host = request.url.hostname or coordinator.settings.host
    bracketed = f"[{host}]" if ":" in host else host
    public_url = coordinator.settings.url
    if not coordinator.settings.public_url:
        public_url = f"{request.url.scheme}://{request.url.netloc}"
    return ProjectAccess(
        record=record,
        coordinator_public_key=coordinator.public_key,
        bootstrap=(f"{bracketed}:{coordinator.eyes.dht_port}", *coordinator.settings.bootstrap),
        your_address=request.client.host if request.client is not None else "",
        wall_s=coordinator.clock.wall_s(),
        dashboard_url=f"{public_url}/p/{record.id}",
    )
