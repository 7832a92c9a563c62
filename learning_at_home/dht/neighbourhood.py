"""Whom a peer of the DHT knows: the package's routing table, and who of it did not answer lately. `now` is passed in.

The table itself decides who is worth a place (buckets, Kademlia's rule for full ones); this adds what it lacks: the
exact order by distance, and silence, so that a dead contact costs one timeout and then none for a while.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kademlia.node import Node
from kademlia.routing import KBucket, RoutingTable

from learning_at_home.dht.address_blocks import BlockLimits
from learning_at_home.dht.contacts import Address, Contact

SILENCE_S = 5.0  # a peer that did not answer is not asked again for so long, unless it speaks first
FAILURES_TO_REMOVE = 2  # in a row; one may be a stall of the peer or of this process
MAX_SILENT = 4_096
MAX_ANSWERED = 4_096


class _Entry(Node):  # type: ignore[misc]  # the package has no types
    """A contact in the package's table."""

    def __init__(self, contact: Contact) -> None:
        super().__init__(contact.node_id, contact.ip, contact.port)
        self.contact = contact


@dataclass(slots=True)
class _Silence:
    failures: int
    until_s: float


class Neighbourhood:
    """`table` is the package's; only this class writes to it."""

    def __init__(self, own_id: bytes, table: RoutingTable, limits: BlockLimits) -> None:
        self._own_id = own_id
        self._table = table
        self._limits = limits
        self._silent: OrderedDict[Address, _Silence] = OrderedDict()
        self._answered_s: OrderedDict[Address, float] = OrderedDict()
        self._listed: dict[int, Contact] | None = None  # by their ids as numbers; None: the table has changed

    def contacts(self) -> list[Contact]:
        """Everyone in the table."""
        return list(self._list().values())

    def closest(self, target: bytes, count: int, now: float) -> list[Contact]:
        """The contacts nearest to a target; those that are silent now only when there are no others.

        The package's `find_neighbors` takes buckets left and right in turn, which is not the order of the XOR metric.
        """
        listed = self._list()
        numbers: Iterable[int] = listed
        if self._silent:
            speaking = [number for number, contact in listed.items() if not self.is_silent(contact.address, now)]
            numbers = speaking or listed
        nearest_first = sorted(numbers, key=int.from_bytes(target, "big").__xor__)
        return [listed[number] for number in nearest_first[:count]]

    def find(self, node_id: bytes) -> Contact | None:
        """The contact of this id."""
        entry: _Entry | None = self._table.buckets[self._table.get_bucket_for(Node(node_id))][node_id]
        return None if entry is None else entry.contact

    def is_silent(self, address: Address, now: float) -> bool:
        """Whether this peer failed to answer a moment ago: asking it again would likely cost another timeout."""
        silence = self._silent.get(address)
        return silence is not None and now < silence.until_s

    def spoke(self, address: Address) -> None:
        """Something came from this peer."""
        self._silent.pop(address, None)

    def bucket(self, contact: Contact) -> int:
        """The place of its bucket in the table, those of the least ids first."""
        place: int = self._table.get_bucket_for(_Entry(contact))
        return place

    def answered_s(self, contact: Contact) -> float | None:
        """When it last answered."""
        return self._answered_s.get(contact.address)

    def answered(self, contact: Contact, now: float) -> bool:
        """It answered a request under this id: whether it is a new contact by that."""
        self.spoke(contact.address)
        self._answered_s[contact.address] = now
        self._answered_s.move_to_end(contact.address)
        if len(self._answered_s) > MAX_ANSWERED:
            self._answered_s.popitem(last=False)
        known = self.find(contact.node_id)
        if contact.node_id == self._own_id or (known is not None and known != contact):
            return False  # a contact's id from elsewhere: it stays where it answered first, until it stops answering
        if known is None and not self._has_room(contact):
            return False
        self._table.add_contact(_Entry(contact))
        if known is None:
            self._listed = None
        return known is None and self.find(contact.node_id) is not None

    def failed(self, address: Address, node_id: bytes | None, now: float) -> None:
        """It did not answer in time."""
        failures = self._hush(address, now, failures=1)
        known = None if node_id is None else self.find(node_id)
        if known is not None and known.address == address and failures >= FAILURES_TO_REMOVE:
            self.remove(known)

    def overdue(self, address: Address, now: float) -> None:
        """It was asked several times and may still answer: until it does others are asked instead."""
        self._hush(address, now, failures=0)

    def remove(self, contact: Contact) -> None:
        self._table.remove_contact(_Entry(contact))
        self._listed = None

    def refresh_targets(self) -> list[bytes]:
        """An id in the range of each bucket that nobody looked into for an hour (the package's rule)."""
        targets: list[bytes] = self._table.protocol.get_refresh_ids()
        return targets

    def _has_room(self, contact: Contact) -> bool:
        """For its address block. Who waits for a place in a full bucket counts too: nobody asks again then."""
        buckets = self._table.buckets
        bucket = buckets[self.bucket(contact)]
        return self._limits.has_room(contact.ip, _ips([bucket]), _ips(buckets))

    def _list(self) -> dict[int, Contact]:
        if self._listed is None:
            contacts = (entry.contact for bucket in self._table.buckets for entry in bucket.get_nodes())
            self._listed = {contact.number: contact for contact in contacts}
        return self._listed

    def _hush(self, address: Address, now: float, failures: int) -> int:
        """How often it has failed by now."""
        known = self._silent.get(address)
        failures += known.failures if known is not None else 0
        self._silent[address] = _Silence(failures, now + SILENCE_S)
        self._silent.move_to_end(address)
        if len(self._silent) > MAX_SILENT:
            self._silent.popitem(last=False)
        return failures


def _ips(buckets: Iterable[KBucket]) -> Iterator[str]:
    for bucket in buckets:
        for nodes in (bucket.nodes, bucket.replacement_nodes):
            yield from (node.ip for node in nodes.values())
