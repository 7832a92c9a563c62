"""Whom a peer of the DHT knows: the package's routing table, and who of it did not answer lately. `now` is passed in.

The table itself decides who is worth a place (buckets, Kademlia's rule for full ones); this adds what it lacks: the
exact order by distance, and silence, so that a dead contact costs one timeout and then none for a while.
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kademlia.node import Node
from kademlia.routing import KBucket, RoutingTable

from learning_at_home.dht.address_blocks import MAX_IN_BUCKET, BlockLimits
from learning_at_home.dht.contacts import Address, Contact

SILENCE_S = 5.0  # a peer that did not answer is not asked again for so long, unless it speaks first
FAILURES_TO_REMOVE = 2  # in a row; one may be a stall of the peer or of this process
GREET_AGAIN_S = 60.0  # after which a stranger that asks is pinged again: most find their bucket as full as before
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
        self._answered_s: OrderedDict[Address, tuple[int, float]] = OrderedDict()  # who did there last, and when
        self._listed: dict[int, _Entry] | None = None  # by their ids as numbers; None: the table has changed
        self._most_of_block: Counter[bytes] = Counter()  # at most so many are in the table or wait for a place there

    def contacts(self) -> list[Contact]:
        """Everyone in the table."""
        return [entry.contact for entry in self._list().values()]

    def closest(self, target: bytes, count: int, now: float) -> list[Contact]:
        """The contacts nearest to a target; those that are silent now only when there are no others.

        The package's `find_neighbors` takes buckets left and right in turn, which is not the order of the XOR metric.
        """
        listed = self._list()
        nearest_first = sorted(listed, key=int.from_bytes(target, "big").__xor__)
        if self._silent:
            speaking = (number for number in nearest_first if not self.is_silent(listed[number].contact.address, now))
            nearest_first = list(itertools.islice(speaking, count)) or nearest_first
        return [listed[number].contact for number in nearest_first[:count]]

    def knows_nearer(self, target: bytes, distance: int, other_than: Contact, now: float) -> bool:
        """Whether some other contact that is not silent is nearer to a target than this."""
        place = int.from_bytes(target, "big")
        return any(
            number ^ place < distance and number != other_than.number and not self.is_silent(entry.contact.address, now)
            for number, entry in self._list().items()
        )

    def closest_to_any(self, targets: Sequence[bytes], count: int, most: int, now: float) -> list[Contact]:
        """The contacts nearest to each of the targets, up to `count` of each and `most` in all: first the nearest of
        each, then the second of each, and so on. Where `most` is more than there are, all of them."""
        if len(targets) == 1:
            return self.closest(targets[0], count, now)[:most]
        if len(self._list()) <= most:
            return self.speaking(self.contacts(), now)
        nearest = [self.closest(target, count, now) for target in targets]
        ranks = itertools.chain.from_iterable(itertools.zip_longest(*nearest))
        return list(itertools.islice(dict.fromkeys(contact for contact in ranks if contact is not None), most))

    def find(self, node_id: bytes) -> Contact | None:
        """The contact of this id."""
        entry = self._list().get(int.from_bytes(node_id, "big"))
        return None if entry is None else entry.contact

    def is_silent(self, address: Address, now: float) -> bool:
        """Whether this peer failed to answer a moment ago: asking it again would likely cost another timeout."""
        silence = self._silent.get(address)
        return silence is not None and now < silence.until_s

    def speaking(self, contacts: list[Contact], now: float) -> list[Contact]:
        """Those of them that are not silent."""
        if not self._silent:
            return contacts
        return [contact for contact in contacts if not self.is_silent(contact.address, now)]

    def spoke(self, address: Address) -> None:
        """Something came from this peer."""
        self._silent.pop(address, None)

    def bucket(self, contact: Contact) -> int:
        """The place of its bucket in the table, those of the least ids first."""
        place: int = self._table.get_bucket_for(_Entry(contact))
        return place

    def answered_s(self, contact: Contact) -> float | None:
        """When it last answered there."""
        number, at_s = self._answered_s.get(contact.address, (None, 0.0))
        return at_s if number == contact.number else None

    def was_greeted(self, stranger: Contact, now: float) -> bool:
        """Whether it answered lately, and found no place in the table or waits for one."""
        answered_s = self.answered_s(stranger)
        return answered_s is not None and now < answered_s + GREET_AGAIN_S

    def answered(self, contact: Contact, now: float) -> bool:
        """It answered a request under this id: whether it is a new contact by that."""
        self.spoke(contact.address)
        self._answered_s[contact.address] = (contact.number, now)
        self._answered_s.move_to_end(contact.address)
        if len(self._answered_s) > MAX_ANSWERED:
            self._answered_s.popitem(last=False)
        known = self._list().get(contact.number)
        if known is not None:
            if known.contact == contact:  # a contact's id from elsewhere: it stays where it answered first, until it
                self._table.add_contact(known)  # stops answering
            return False
        if contact.node_id == self._own_id or not self._has_room(contact):
            return False
        return self._add(_Entry(contact))

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

    def _add(self, entry: _Entry) -> bool:
        """Whether it has a place now; in a full bucket it only waits for one."""
        num_buckets = len(self._table.buckets)
        self._table.add_contact(entry)
        self._most_of_block[self._limits.block(entry.ip)] += 1
        if len(self._table.buckets) != num_buckets:  # one was split, and others who waited have places too
            self._listed = None
        elif self._table.buckets[self._table.get_bucket_for(entry)][entry.id] is not None:
            self._list()[entry.contact.number] = entry
        return entry.contact.number in self._list()

    def _has_room(self, contact: Contact) -> bool:
        """For its address block. Who waits for a place in a full bucket counts too: nobody asks again then."""
        if self._most_of_block[self._limits.block(contact.ip)] < MAX_IN_BUCKET:
            return True
        buckets = self._table.buckets
        bucket = buckets[self.bucket(contact)]
        return self._limits.has_room(contact.ip, _ips([bucket]), _ips(buckets))

    def _list(self) -> dict[int, _Entry]:
        if self._listed is None:
            entries = (entry for bucket in self._table.buckets for entry in bucket.get_nodes())
            self._listed = {entry.contact.number: entry for entry in entries}
            self._most_of_block = Counter(map(self._limits.block, _ips(self._table.buckets)))
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
