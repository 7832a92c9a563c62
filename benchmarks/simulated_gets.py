"""Gets in a simulated DHT whose peers come and go, lose datagrams and lie: our real code, in virtual time."""

from __future__ import annotations

import asyncio
import random
import statistics
from dataclasses import dataclass, field

from learning_at_home.dht.node import DhtNode
from learning_at_home.errors import LearningAtHomeError
from learning_at_home.testing import SimulatedDht, SimulatedNetwork, run_in_virtual_time
from learning_at_home.testing.liars import Lie, make_liar

ROUND_TRIP_S = 0.1
RECORD_LIFE_S = 3_600.0
REPLICAS = 20
SUCCEEDED = REPLICAS // 2  # a store that so many of the closest hold has succeeded


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated. Rates are shares of all peers."""

    num_nodes: int
    num_gets: int
    num_keys: int = 100
    churn_per_min: float = 0.0
    loss: float = 0.05
    hostile: float = 0.0
    duration_s: float = 60.0  # virtual; gets, stores and churn are spread over it
    seed: int = 0


@dataclass(slots=True)
class Outcome:
    """Of one run."""

    num_right: int = 0
    round_trips: list[float] = field(default_factory=list)  # of each get, its time by the network's round trip

    @property
    def right(self) -> float:
        return self.num_right / len(self.round_trips)

    @property
    def median_round_trips(self) -> float:
        return statistics.median(self.round_trips)

    @property
    def mean_round_trips(self) -> float:
        return statistics.fmean(self.round_trips)


def simulate(scenario: Scenario) -> Outcome:
    """Run it; takes about a minute per 2,000 peers."""
    network = SimulatedNetwork(one_way_s=ROUND_TRIP_S / 2, jitter=0.0, loss=scenario.loss, seed=scenario.seed)
    return run_in_virtual_time(_Simulation(scenario, network).run(), network)


class _Simulation:
    def __init__(self, scenario: Scenario, network: SimulatedNetwork) -> None:
        self._scenario = scenario
        self._network = network
        self._chance = random.Random(scenario.seed)
        self._outcome = Outcome()
        self._liars: set[DhtNode] = set()
        self._newest: dict[bytes, tuple[bytes, bytes]] = {}  # key -> publisher and value of what was stored last

    async def run(self) -> Outcome:
        scenario = self._scenario
        async with SimulatedDht(self._network) as dht:
            nodes = await dht.settle(scenario.num_nodes)
            liars = self._chance.sample(nodes, int(scenario.hostile * len(nodes)))
            for number, liar in enumerate(liars):
                make_liar(liar, list(Lie)[number % len(Lie)], liars, self._chance)
            self._liars.update(liars)
            keys = [self._chance.randbytes(20) for _ in range(scenario.num_keys)]
            for key in keys:
                await self._store(dht, key)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._churn(dht))
                tasks.create_task(self._store_again(dht, keys))
                for _ in range(scenario.num_gets):
                    await asyncio.sleep(scenario.duration_s / scenario.num_gets)
                    tasks.create_task(self._get(dht, self._chance.choice(keys)))
        return self._outcome

    async def _churn(self, dht: SimulatedDht) -> None:
        """Every so often a peer dies, and a new one joins through some that live."""
        num_leaving = int(self._scenario.churn_per_min * self._scenario.num_nodes * self._scenario.duration_s / 60)
        async with asyncio.TaskGroup() as joining:
            for _ in range(num_leaving):
                await asyncio.sleep(self._scenario.duration_s / num_leaving)
                await dht.kill(self._honest(dht))
                joining.create_task(_join(dht))

    async def _store_again(self, dht: SimulatedDht, keys: list[bytes]) -> None:
        """A new version of each key, once."""
        for key in keys:
            await asyncio.sleep(self._scenario.duration_s / len(keys))
            await self._store(dht, key)

    async def _store(self, dht: SimulatedDht, key: bytes) -> None:
        """By a publisher of the moment: its own sub-record. Until it has succeeded nothing of it counts."""
        publisher = self._honest(dht)
        value = self._chance.randbytes(16)
        try:
            holders = await publisher.store(key, value, RECORD_LIFE_S)
        except LearningAtHomeError:
            return
        if holders >= SUCCEEDED:
            self._newest[key] = (publisher.identity.public_key, value)

    async def _get(self, dht: SimulatedDht, key: bytes) -> None:
        """By a peer of the moment. One that dies meanwhile does not count."""
        reader = self._honest(dht)
        wanted = self._newest.get(key)
        if wanted is None:
            return
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        found = {record.publisher: record.value for record in await reader.get(key)}
        if reader in dht.living:
            self._outcome.round_trips.append((loop.time() - began_s) / ROUND_TRIP_S)
            self._outcome.num_right += found.get(wanted[0]) == wanted[1]

    def _honest(self, dht: SimulatedDht) -> DhtNode:
        while (node := self._chance.choice(dht.living)) in self._liars:
            pass
        return node


async def _join(dht: SimulatedDht) -> None:
    await dht.join()
