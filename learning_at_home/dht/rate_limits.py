"""How many requests of one address are answered: as many as a busy honest peer sends, and no flood. Pure.

A token bucket per address, per /64 of IPv6. A request in parts counts once for each. Requests with a token that shows
who hears there (address_proofs.py) have a bucket of their own, which others, whose sender may be forged, do not empty.
Exempt is whoever no block limit counts: see address_blocks.py.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

from learning_at_home.dht.address_blocks import BlockLimits

RATE_PER_S = 200.0  # a trainer of eight layers reads 80 in its busiest seconds; 200 stores cost 5 % of a core
BURST = 1_000.0  # of a beam search, or of a node's first announcement among few peers
SLOTS_PER_REQUEST = 16  # that a stored record claims: they take as long as a store
MAX_SOURCES = 4_096
_IPV6_GROUPS = 4  # of an address's eight: what one customer's line has at least


class RateLimits:
    """Whose requests are answered now."""

    def __init__(self, limits: BlockLimits) -> None:
        self._limits = limits
        self._buckets: OrderedDict[tuple[str, bool], tuple[float, float]] = OrderedDict()  # what was left, and when

    def admits(self, ip: str, is_heard: bool, now: float, count: int = 1) -> bool:
        """Whether a request from this numeric address is to be answered; it counts, for so many, when it is.

        `is_heard`: it has shown that its sender hears there.
        """
        if self._limits.is_exempt(ip):
            return True
        source = source_of(ip), is_heard
        left, at_s = self._buckets.get(source, (BURST, now))
        left = min(BURST, left + RATE_PER_S * max(0.0, now - at_s))
        admitted = left >= count
        self._buckets[source] = (left - count if admitted else left, now)
        self._buckets.move_to_end(source)
        if len(self._buckets) > MAX_SOURCES:
            self._buckets.popitem(last=False)
        return admitted

    def charge(self, ip: str, is_heard: bool, num_slots: int) -> None:
        """A request that was just admitted claimed so many slots, and counts for more than one."""
        source = source_of(ip), is_heard
        if num_slots and source in self._buckets:
            left, at_s = self._buckets[source]
            self._buckets[source] = (left - num_slots / SLOTS_PER_REQUEST, at_s)


def source_of(ip: str) -> str:
    """What is limited: the numeric address, or the /64 it lies in."""
    if ":" not in ip:
        return ip
    return ipaddress.IPv6Address(ip).packed[: 2 * _IPV6_GROUPS].hex()
