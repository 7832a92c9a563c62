"""Our DHT: so many peers in this process, each with a socket of its own on loopback. Run by benchmarks.sides.

Dead peers keep their ports bound and say nothing. They die anew in every measurement, so that nobody knows of it yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from dataclasses import dataclass

from benchmarks.dht_work import EXPERTS_DECLARED, GRID, KEYS_HELD, LIFE_S, PREFIX, VALUE_BYTES, seconds_of
from benchmarks.worker import Work, serve, settings_of
from learning_at_home.dht.exchange import K
from learning_at_home.dht.node import DhtNode
from learning_at_home.directory.announcement import Announcement, Claim, spans_of
from learning_at_home.directory.publisher import publish
from learning_at_home.directory.slot_rule import AnnouncementSlots
from learning_at_home.identity import Identity
from learning_at_home.project import LayerSpec, ProjectRecord

KEY_BYTES = 20
JOINING_AT_ONCE = 10
QUIET_S = 0.2
QUIET_TIMEOUT_S = 120.0  # after a long stop all look around, and store again what they published in hundreds of stores
HEALING_S = 90.0  # each has looked around twice


@dataclass(frozen=True, slots=True)
class Settings:
    num_nodes: int
    seed: int
    dead_share: float = 0.0
    healed: bool = False


class Peers:
    """A swarm of living peers, the sockets of dead ones, and what was stored."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.living: list[DhtNode] = []
        self.held: dict[bytes, bytes] = {}
        self._silent = contextlib.ExitStack()

    async def grow(self, count: int) -> None:
        while len(self.living) < count:
            known = [node.address for node in self.chance.sample(self.living, min(3, len(self.living)))]
            wave = min(JOINING_AT_ONCE, count - len(self.living), max(1, len(self.living)))
            nodes = [DhtNode(Identity.generate(), bootstrap=known, slot_rule=AnnouncementSlots()) for _ in range(wave)]
            self.living += await asyncio.gather(*(node.__aenter__() for node in nodes))
        await self.quiet()
        for _ in range(KEYS_HELD):
            await self.store()

    async def quiet(self) -> None:
        """Return when nobody asks anybody: what fell due while this process was stopped is done."""
        async with asyncio.timeout(QUIET_TIMEOUT_S):
            before = -1
            while (requests := self._num_requests()) != before:
                before = requests
                await asyncio.sleep(QUIET_S)

    def _num_requests(self) -> int:
        return sum(node._protocol.counters["requests"] for node in self.living)

    async def kill(self, count: int) -> None:
        """So many, chosen by chance, say nothing from now on."""
        for node in self.chance.sample(self.living, count):
            port = node.port
            await node.__aexit__(None, None, None)
            sock = self._silent.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.bind(("127.0.0.1", port))
            self.living.remove(node)

    async def store(self) -> bytes:
        """A new value under a new key, which is returned."""
        key, value = self.chance.randbytes(KEY_BYTES), self.chance.randbytes(VALUE_BYTES)
        await self.chance.choice(self.living).store(key, value, LIFE_S)
        self.held[key] = value
        return key

    async def get(self) -> None:
        """Raises AssertionError when it is not what was stored last."""
        key, value = self.chance.choice(list(self.held.items()))
        found = [record.value for record in await self.chance.choice(self.living).get(key)]
        assert found == [value], f"a get brought {len(found)} values, or a wrong one"

    def assert_held(self) -> None:
        """Every store succeeded: at least half of the k closest living peers hold the record."""
        for key in self.held:
            place = int.from_bytes(key, "big")
            by_distance = sorted(self.living, key=lambda node: int.from_bytes(node.identity.peer_id, "big") ^ place)
            closest = by_distance[:K]
            holders = sum(bool(node._storage.records(key, node._wall_ms())) for node in closest)
            assert 2 * holders >= len(closest), f"only {holders} of the {len(closest)} closest living peers hold it"

    async def end(self) -> None:
        with self._silent:
            await asyncio.gather(*(node.__aexit__(None, None, None) for node in self.living))
        self.living.clear()


class OurDht:
    """One event loop, which runs only while something is measured."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._runner = asyncio.Runner()
        self._chance = random.Random(settings.seed)
        self._peers = Peers(self._chance)
        if not settings.dead_share:
            self._runner.run(self._peers.grow(settings.num_nodes))

    def check(self) -> None:
        """That gets are right and stores succeed."""
        if self._peers.living:
            self._runner.run(self._peers.get())
            self._peers.assert_held()

    def ready(self) -> None:
        """Once what fell due in the meantime is done."""
        if self._peers.living:
            self._runner.run(self._peers.quiet())

    def measure(self, work: Work) -> float:
        """Seconds per operation."""
        if not self._settings.dead_share:
            return self._measure(self._peers, work)
        peers = Peers(self._chance)
        try:
            self._runner.run(self._form(peers))
            return self._measure(peers, work)
        finally:
            self._runner.run(peers.end())

    def close(self) -> None:
        self._runner.run(self._peers.end())
        self._runner.close()

    async def _form(self, peers: Peers) -> None:
        await peers.grow(self._settings.num_nodes)
        await peers.kill(round(self._settings.dead_share * self._settings.num_nodes))
        if self._settings.healed:
            await asyncio.sleep(HEALING_S)

    def _measure(self, peers: Peers, work: Work) -> float:
        match work.name.removesuffix("-p95"):
            case "get":
                return seconds_of(lambda: self._runner.run(peers.get()), work)
            case "store":
                peers.held.clear()
                seconds = seconds_of(lambda: self._runner.run(peers.store()), work)
                peers.assert_held()
                return seconds
            case "declare":
                return seconds_of(lambda: self._runner.run(self._declare(peers)), work)
        raise ValueError(f"no such work: {work.name}")

    async def _declare(self, peers: Peers) -> None:
        """One node's announcement of experts that it did not have before."""
        project = ProjectRecord(id="benchmark", layers=(LayerSpec(prefix=PREFIX, grid=GRID),))
        cells = self._chance.sample(range(GRID[0] * GRID[1]), EXPERTS_DECLARED)
        announcement = Announcement(
            project=project.id,
            name="benchmark",
            endpoints=("tcp://127.0.0.1:1",),
            state="online",
            claims=(Claim(PREFIX, spans_of(cells), 1),),
            issued_ms=0,
        )
        assert await publish(peers.living[0], project, announcement), "nobody holds the announcement"


if __name__ == "__main__":
    serve(lambda: OurDht(settings_of(Settings)))
