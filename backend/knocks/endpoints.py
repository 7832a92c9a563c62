"""POST /api/v1/knock: try the caller's own ports from here, so that `lah doctor` can tell whether others reach them."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.background import BackgroundTask
from starlette.responses import Response

from backend.http import Json, TheCoordinator, answers
from learning_at_home.coordinator_messages import Knocking
from learning_at_home.errors import UsageError

router = APIRouter(prefix="/api/v1/knock", tags=["service"])

Port = Annotated[int | None, Query(ge=1, le=65_535)]


@router.post("", responses=answers(Knocking))
async def knock(
    request: Request,
    coordinator: TheCoordinator,
    token: Annotated[str, Query(pattern="^[0-9a-f]{32}$")],
    tcp_port: Port = None,
    udp_port: Port = None,
) -> Response:
    """Bring the token to these ports of the address that asks. Whether it arrived is for the caller to see."""
    address = _number(request.client.host if request.client is not None else "")
    if not address or (coordinator.settings.public_url and ipaddress.ip_address(address).is_loopback):
        raise UsageError("the coordinator does not see your address: a proxy in front of it hides it")
    coordinator.knocker.admit(address, coordinator.clock.monotonic_s())
    work = BackgroundTask(coordinator.knocker.knock, address, token, tcp_port, udp_port)
    return Json(Knocking(address), background=work)


def _number(host: str) -> str:
    """The address, IPv4 in its own form; "" for what is none."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
