"""Where a peer of the DHT is: its id and its UDP address. Pure."""

from __future__ import annotations

import ipaddress
from enum import Enum, auto
from functools import lru_cache
from typing import NamedTuple

from learning_at_home.errors import ConfigError

Address = tuple[str, int]  # a numeric IP address and a UDP port


class Contact(NamedTuple):
    """A peer and its place. The id is the hash of its public key; nothing proves that yet: issue 4's handshake."""

    node_id: bytes
    ip: str
    port: int

    @property
    def address(self) -> Address:
        return (self.ip, self.port)

    def distance(self, target: bytes) -> int:
        """Kademlia's XOR metric."""
        return int.from_bytes(self.node_id, "big") ^ int.from_bytes(target, "big")


def is_worth_asking(contact: Contact, relayed_by: Address) -> bool:
    """Whether a contact that a peer told us of may be sent datagrams: an address that the teller could reach itself.

    A stranger must not aim our datagrams at this machine, at our home network, or at names that have to be resolved.
    """
    place, tellers = _place_of(contact.ip), _place_of(relayed_by[0])
    if place is None or tellers is None or not 1 <= contact.port <= 65_535:
        return False
    return place is _Place.INTERNET or tellers is _Place.MACHINE or place is tellers


def parse_address(text: str) -> tuple[str, int]:
    """Host (a name or a number) and port of "host:port" or "[v6]:port". Raises ConfigError with an example."""
    host, colon, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not colon or not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65_535:
        raise ConfigError(
            f"{text[:80]!r} is not a DHT address such as 'coordinator.example:7070' or '[2001:db8::1]:7070'"
        )
    return host, int(port)


def shown_address(address: Address) -> str:
    """ "host:port", with brackets around an IPv6 address."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Place(Enum):
    MACHINE = auto()
    HOME = auto()
    INTERNET = auto()


@lru_cache(maxsize=4_096)  # every answer tells of 20 addresses, nearly always the same ones
def _place_of(ip: str) -> _Place | None:
    """Whence a numeric address can be reached; None for what is no unicast address."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return None
    if "%" in ip:  # an IPv6 zone means something on the teller's machine only
        return None
    if address.is_loopback:
        return _Place.MACHINE
    if address.is_multicast or address.is_unspecified or address.is_reserved:
        return None
    return _Place.HOME if address.is_private or address.is_link_local else _Place.INTERNET
