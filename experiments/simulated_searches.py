"""Trainers that search the best experts among thousands of simulated nodes: our DHT and directory, in virtual time.

Virtual time is that of the network alone: what processors take is counted apart.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from dataclasses import dataclass

from experiments.dashboard import UNSEEN, Curve
from learning_at_home.client.living import EXPLORED_WIDTH
from learning_at_home.dht.node import DhtNode
from learning_at_home.directory.announcement import ANNOUNCEMENT_REFRESH_S, Announcement, Claim
from learning_at_home.directory.directory import Directory
from learning_at_home.directory.publisher import publish
from learning_at_home.project import LayerSpec, ProjectRecord
from learning_at_home.testing import LoopClock, SimulatedDht, SimulatedNetwork, run_in_virtual_time

PREFIX = "ffn0"
SETTLED_S = 5.0  # after the last announcement
TRAINERS_WITHIN_S = 5.0  # all searches lie within the announcements' first life: nobody announces twice


@dataclass(frozen=True, slots=True)
class Scene:
    """What is simulated: every host announces one expert, in a square grid that has no more rows than it needs."""

    nodes: int
    hosts: int  # of the nodes
    trainers: int = 20  # each searches once cold, once the same again, and `others` times for other rows
    others: int = 4
    rows: int = 1
    k_best: int = 4
    one_way_s: float = 0.05
    loss: float = 0.0
    seed: int = 0

    @property
    def side(self) -> int:
        return math.isqrt(self.hosts - 1) + 1

    @property
    def project(self) -> ProjectRecord:
        layer = LayerSpec(prefix=PREFIX, grid=(self.side, self.side))
        return ProjectRecord(id="finding-experts", layers=(layer,)).check()

    @property
    def cells(self) -> list[int]:
        """Which cell each host serves: scattered, so that the vacant ones are, too."""
        return random.Random(self.seed).sample(range(self.side**2), self.hosts)

    def announcement(self, cell: int) -> Announcement:
        """Of its host."""
        return Announcement(
            project="finding-experts",
            name=f"host of {cell}",
            endpoints=("tcp://127.0.0.1:1",),
            state="online",
            issued_ms=0,
            claims=(Claim(PREFIX, ((cell, cell + 1),), 0),),
        )


@dataclass(frozen=True, slots=True)
class Search:
    """One, in virtual time. `kind`: cold (by a peer that has just joined), same (again), other (rows, that is)."""

    kind: str
    seconds: float
    round_trips: float  # its time by the network's round trip: what waited for what
    asked: bool  # anybody at all
    right: bool  # whether the best of all living experts were known after it


@dataclass(frozen=True, slots=True)
class Searches:
    """What came of a scene."""

    searches: list[Search]
    join_seconds: list[float]  # of each trainer, before it could search
    held: int  # hosts whose announcements somebody holds
    processor_seconds: float  # of everybody in the simulation, per search
    wall_seconds: float  # of the whole simulation

    def of_kind(self, kind: str) -> list[Search]:
        return [search for search in self.searches if search.kind == kind]


def simulate(scene: Scene, curve: Curve = UNSEEN) -> Searches:
    """Run it. `curve` is told what each search took."""
    network = SimulatedNetwork(one_way_s=scene.one_way_s, jitter=0.0, loss=scene.loss, seed=scene.seed)
    return run_in_virtual_time(_Simulation(scene, network, curve).run(), network)


def best_cells_of(row: list[float], cells: list[int], side: int, k: int) -> list[int]:
    """The k best, the best first, without any trick."""
    return sorted(cells, key=lambda cell: -(row[cell // side] + row[side + cell % side]))[:k]


class _Simulation:
    def __init__(self, scene: Scene, network: SimulatedNetwork, curve: Curve) -> None:
        self._scene = scene
        self._curve = curve
        self._network = network
        self._project = scene.project
        self._cells = scene.cells
        self._chance = random.Random(scene.seed + 1)
        self._found: list[Search] = []
        self._join_seconds: list[float] = []

    async def run(self) -> Searches:
        scene, began_s = self._scene, time.monotonic()
        async with SimulatedDht(self._network) as dht:
            nodes = await dht.settle(scene.nodes)
            hosts = nodes[: scene.hosts]
            held = await asyncio.gather(*(self._announce(node, number) for number, node in enumerate(hosts)))
            await asyncio.sleep(SETTLED_S)
            processor_s = time.process_time()
            async with asyncio.TaskGroup() as trainers:
                for number in range(scene.trainers):
                    trainers.create_task(self._trainer(dht, number))
            processor_s = time.process_time() - processor_s
        return Searches(
            self._found,
            self._join_seconds,
            sum(holders > 0 for holders in held),
            processor_s / max(1, len(self._found)),
            time.monotonic() - began_s,
        )

    async def _announce(self, node: DhtNode, host: int) -> int:
        """At a moment of its own, as refreshes are spread; how many hold it."""
        await asyncio.sleep(ANNOUNCEMENT_REFRESH_S * host / self._scene.hosts)
        return await publish(node, self._project, self._scene.announcement(self._cells[host]))

    async def _trainer(self, dht: SimulatedDht, number: int) -> None:
        scene, loop = self._scene, asyncio.get_running_loop()
        await asyncio.sleep(TRAINERS_WITHIN_S * number / scene.trainers)
        began_s = loop.time()
        trainer = await dht.join(client_only=True)
        self._join_seconds.append(loop.time() - began_s)
        directory = Directory(self._project, LoopClock(loop))
        first = self._scores()
        await self._search("cold", trainer, directory, first)
        await self._search("same", trainer, directory, first)
        for _ in range(scene.others):
            await self._search("other", trainer, directory, self._scores())

    async def _search(self, kind: str, trainer: DhtNode, directory: Directory, scores: list[list[float]]) -> None:
        scene, loop = self._scene, asyncio.get_running_loop()
        began_s = loop.time()
        asked = await directory.explore(trainer, PREFIX, scores, EXPLORED_WIDTH * scene.k_best)
        seconds = loop.time() - began_s
        holders = directory.layer(PREFIX).holders
        best = (best_cells_of(row, self._cells, scene.side, scene.k_best) for row in scores)
        right = all(holders[cell] is not None for cell in itertools.chain.from_iterable(best))
        self._found.append(Search(kind, seconds, seconds / (2 * scene.one_way_s), asked, right))
        self._curve(len(self._found), **{f"{kind}_ms": seconds * 1e3})

    def _scores(self) -> list[list[float]]:
        """One score per grid line and row."""
        scene = self._scene
        return [[self._chance.gauss(0, 1) for _ in range(2 * scene.side)] for _ in range(scene.rows)]
