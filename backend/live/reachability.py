"""Where an announced endpoint may be aimed at: what strangers write must not have us call this machine, or the home
network it stands in, unless they are met there themselves. The rule is dht/contacts.is_worth_asking. Pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from learning_at_home.dht.contacts import is_worth_asking

_ANYBODY = "8.8.8.8"  # stands for a teller somewhere on the internet: what is public may be called whoever says so
MAX_ENDPOINTS = 3  # of one node, the best first: a probe tries all of them


def worth_calling(endpoints: Iterable[str], met_at: Iterable[str]) -> tuple[str, ...]:
    """Those endpoints that one who is met at any of these addresses could reach itself. Endpoints are checked ones."""
    tellers = [ip for text in met_at if (ip := _number(text))]
    found = []
    for endpoint in endpoints:
        parts = urlsplit(endpoint)
        address = (_number(parts.hostname or ""), parts.port or 0)
        if any(is_worth_asking(address, (ip, 0)) for ip in (*tellers, _ANYBODY)):
            found.append(endpoint)
    return tuple(found[:MAX_ENDPOINTS])


def own_address(host: str, public_url: str) -> str:
    """The address at which peers reach this coordinator: "" when that is no number of ours to know."""
    return _number(urlsplit(public_url).hostname or "") if public_url else _number(host)


def is_local(address: str) -> bool:
    """Whether this is an address of one's own machine."""
    number = _number(address)
    return bool(number) and ipaddress.ip_address(number).is_loopback


def _number(host: str) -> str:
    """The address as a number, IPv4 in its own form; "" for a name."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
