"""Where a peer of the DHT is: its id and its UDP address. Pure."""

from __future__ import annotations

import ipaddress
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
    if "%" in contact.ip:  # an IPv6 zone means something on the teller's machine only
        return False
    try:
        address, teller = ipaddress.ip_address(contact.ip), ipaddress.ip_address(relayed_by[0])
    except ValueError:
        return False
    if not 1 <= contact.port <= 65_535 or address.is_multicast or address.is_unspecified or address.is_reserved:
        return False
    if address.is_loopback:
        return teller.is_loopback
    if address.is_private:
        return teller.is_private  # Python counts loopback as private too
    return True


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
