"""Which peers likely belong to one owner: those of one address block. Pure.

Ids cost nothing and addresses of one block cost little, but each further block has to be rented: so a table and a
lookup take only a few peers of each. The machine itself and home networks are exempt: whoever is in there could as well
pull the plug, and several nodes at home are normal. Source: S/Kademlia's and Ethereum's limits on the same.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

MAX_IN_BUCKET = 2  # of twenty: a block can never have a bucket to itself
MAX_IN_TABLE = 10
MAX_NEAREST = 2  # of those who hold a record
_IPV4_BITS, _IPV6_BITS = 24, 48  # the least that is routed by itself, and what one customer is given


@lru_cache(maxsize=16_384)
def block_of(ip: str) -> bytes:
    """The block of a numeric address; empty for one that needs no limit."""
    address = ipaddress.ip_address(ip)
    if address.is_loopback or address.is_link_local or address.is_private:
        return b""
    bits = _IPV4_BITS if address.version == 4 else _IPV6_BITS
    return address.packed[: bits // 8]


@dataclass(frozen=True, slots=True)
class BlockLimits:
    """`one_block`: no limits, for a network of tests or of one laboratory."""

    one_block: bool = False

    def has_room(self, ip: str, in_bucket: Iterator[str], in_table: Iterator[str]) -> bool:
        """Whether one more contact from this address may enter a table, given the addresses of those who are in."""
        block = self.block(ip)
        if not block:
            return True
        return (
            sum(block_of(other) == block for other in in_bucket) < MAX_IN_BUCKET
            and sum(block_of(other) == block for other in in_table) < MAX_IN_TABLE
        )

    def counts(self, ip: str, nearer: Counter[bytes]) -> bool:
        """Whether a peer counts among the nearest, given how many of each block are nearer; it is added to them."""
        block = self.block(ip)
        if not block:
            return True
        nearer[block] += 1
        return nearer[block] <= MAX_NEAREST

    def is_exempt(self, ip: str) -> bool:
        """Whether no limit is for this address."""
        return not self.block(ip)

    def block(self, ip: str) -> bytes:
        """What is counted by; empty where nothing is."""
        return b"" if self.one_block else block_of(ip)
