"""Who a peer of the DHT is and where: its public key and its UDP address. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from enum import Enum, auto
from functools import lru_cache
from typing import NamedTuple

from learning_at_home.errors import ConfigError
from learning_at_home.identity import PUBLIC_KEY_BYTES, peer_id

Address = tuple[str, int]  # a numeric IP address and a UDP port


_PORT_BYTES = 2
PACKED_BYTES = (PUBLIC_KEY_BYTES + 4 + _PORT_BYTES, PUBLIC_KEY_BYTES + 16 + _PORT_BYTES)  # IPv4, IPv6


class _Fields(NamedTuple):
    public_key: bytes
    ip: str
    port: int
    node_id: bytes  # follows from the key; kept, since lookups ask for it all the time
    number: int  # the id as a number


class Contact(_Fields):
    """A peer and its place. Its id is the hash of its public key."""

    __slots__ = ()

    def __new__(cls, public_key: bytes, ip: str, port: int) -> Contact:
        node_id = peer_id(public_key)
        return super().__new__(cls, public_key, ip, port, node_id, int.from_bytes(node_id, "big"))

    @property
    def address(self) -> Address:
        return (self.ip, self.port)

    def distance(self, target: bytes) -> int:
        """Kademlia's XOR metric."""
        return self.number ^ int.from_bytes(target, "big")


@lru_cache(maxsize=16_384)  # the contacts of thousands of neighbours come again and again
def packed_contact(contact: Contact) -> bytes:
    """Its public key, its address (4 or 16 bytes) and its port."""
    return contact.public_key + ipaddress.ip_address(contact.ip).packed + contact.port.to_bytes(_PORT_BYTES, "big")


@lru_cache(maxsize=16_384)
def unpacked_contact(data: bytes) -> Contact:
    """The contrary, for as many bytes as PACKED_BYTES says."""
    ip = ipaddress.ip_address(data[PUBLIC_KEY_BYTES:-_PORT_BYTES])
    return Contact(data[:PUBLIC_KEY_BYTES], str(ip), int.from_bytes(data[-_PORT_BYTES:], "big"))


def others_than(asker: Contact, contacts: Iterable[Contact]) -> list[Contact]:
    """Without who asks, and without who would be where it is."""
    ip, port = asker.ip, asker.port
    return [each for each in contacts if each.number != asker.number and (each.port != port or each.ip != ip)]


def is_worth_asking(address: Address, relayed_by: Address) -> bool:
    """Whether an address that a peer told us of may be sent datagrams: one that the teller could reach itself.

    A stranger must not aim our datagrams at this machine, at our home network, or at names that have to be resolved.
    """
    return 1 <= address[1] <= 65_535 and _can_reach(relayed_by[0], address[0])


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


@lru_cache(maxsize=16_384)  # every answer tells of 20 addresses, nearly always the same ones
def _can_reach(teller_ip: str, ip: str) -> bool:
    place, tellers = _place_of(ip), _place_of(teller_ip)
    if place is None or tellers is None:
        return False
    return place is _Place.INTERNET or tellers is _Place.MACHINE or place is tellers


@lru_cache(maxsize=4_096)
def _place_of(ip: str) -> _Place | None:
    """Whence a numeric address can be reached; None for what is no unicast address."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return None
    if "%" in ip:  # an IPv6 zone means something on the teller's machine only
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:  # another name of an IPv4 address
        return None
    if address.is_loopback:
        return _Place.MACHINE
    if address.is_multicast or address.is_unspecified or address.is_reserved:
        return None
    return _Place.HOME if address.is_private or address.is_link_local else _Place.INTERNET
