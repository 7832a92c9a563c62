"""Thousands of peers of the DHT in one process: the protocol's own code, over a SimulatedNetwork, in virtual time.

network = SimulatedNetwork(one_way_s=0.05, loss=0.05, seed=1)

async def main() -> None:
    async with SimulatedDht(network) as dht:
        nodes = await dht.grow(1_000)  # or settle(10_000): without the joins, in a minute
        await nodes[0].store(key, b"value", 60)
        await dht.kill(nodes[0])

run_in_virtual_time(main(), network)
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from learning_at_home.dht.contacts import Contact
from learning_at_home.dht.exchange import K
from learning_at_home.dht.node import DhtNode
from learning_at_home.directory.slot_rule import AnnouncementSlots
from learning_at_home.identity import Identity
from learning_at_home.testing.simulated_network import SimulatedNetwork
from learning_at_home.testing.virtual_time import LoopClock

PORT = 7_338
BOOTSTRAP_PEERS = 3  # each newcomer tries so many of those that live
JOINING_AT_ONCE = 50
ID_BITS = 160


class SimulatedDht:
    """`async with` it; on leaving all peers end."""

    def __init__(self, network: SimulatedNetwork) -> None:
        self.network = network
        self.living: list[DhtNode] = []
        self._num_made = 0

    async def __aenter__(self) -> SimulatedDht:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for node in self.living:
                stack.push_async_exit(node)

    async def grow(self, count: int, **settings: Any) -> list[DhtNode]:
        """So many more peers, in waves. `settings` are DhtNode's."""
        grown: list[DhtNode] = []
        while len(grown) < count:
            wave = min(JOINING_AT_ONCE, count - len(grown), max(1, len(self.living)))
            grown += await asyncio.gather(*(self.join(**settings) for _ in range(wave)))
        return grown

    async def settle(self, count: int, **settings: Any) -> list[DhtNode]:
        """So many more peers that have known each other for long: their tables are filled, their joins not simulated.

        Each gets K contacts out of each of Kademlia's ranges of distance, drawn from all who live; the nearest range
        whole. That is what a table holds at least once many have looked its owner up. `settings` are DhtNode's.
        """
        settled = [await self.join(bootstrap=[], **settings) for _ in range(count)]
        contacts = sorted(map(_contact, self.living), key=_place)
        places = [_place(contact) for contact in contacts]
        now = asyncio.get_running_loop().time()
        for node in settled:
            for first, last in _ranges(places, int.from_bytes(node.identity.peer_id, "big")):
                for index in self.network.random.sample(range(first, last), min(K, last - first)):
                    node._protocol.neighbourhood.answered(contacts[index], now)
        return settled

    async def join(self, *, behind_nat: bool = False, **settings: Any) -> DhtNode:
        """One more peer, that knows a few of those that live. `settings` are DhtNode's."""
        self._num_made += 1
        ip = self.network.next_ip()
        if behind_nat:
            self.network.put_behind_nat(ip)
        known = self.network.random.sample(self.living, min(BOOTSTRAP_PEERS, len(self.living)))
        settings.setdefault("bootstrap", [node.address for node in known])
        settings.setdefault("clock", LoopClock(asyncio.get_running_loop()))
        settings.setdefault("slot_rule", AnnouncementSlots())
        identity = Identity(self._num_made.to_bytes(32, "big"))
        node = DhtNode(identity, ip, PORT, client_only=behind_nat or settings.pop("client_only", False), **settings)
        await node.__aenter__()
        self.living.append(node)
        return node

    async def kill(self, node: DhtNode) -> None:
        """It says nothing any more, not even that: as a machine that lost its power."""
        self.living.remove(node)
        await node.__aexit__(None, None, None)


def _contact(node: DhtNode) -> Contact:
    return Contact(node.identity.public_key, *node._bound)


def _place(contact: Contact) -> int:
    return contact.number


def _ranges(places: Sequence[int], own: int) -> Iterator[tuple[int, int]]:
    """The bounds, in the sorted `places`, of those that share just so many leading bits with `own`: none, one, two...

    The last range is that of all who share as many as it takes to be K at most.
    """
    low, high = 0, 1 << ID_BITS
    while high - low > 1:
        first, last = bisect.bisect_left(places, low), bisect.bisect_left(places, high)
        if last - first <= K:
            yield first, last
            return
        middle = (low + high) // 2
        split = bisect.bisect_left(places, middle)
        if own < middle:
            yield split, last
            high = middle
        else:
            yield first, split
            low = middle
