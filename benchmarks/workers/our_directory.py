"""The choice of experts by what a trainer knows, and a beam search by one who knows nothing (see benchmarks.sides)."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from benchmarks.worker import Work, seconds_per_call, serve, settings_of
from learning_at_home.client.fanout import CallContext
from learning_at_home.client.living import LivingExperts
from learning_at_home.client.selection import best_cells
from learning_at_home.client.stats import CallStats
from learning_at_home.client.tracing import Tracing
from learning_at_home.clock import SystemClock
from learning_at_home.dht.records import sign_record
from learning_at_home.directory.announcement import Announcement, Claim, node_key, spans_of
from learning_at_home.directory.directory import Directory
from learning_at_home.directory.publisher import publish
from learning_at_home.identity import Identity
from learning_at_home.project import LayerSpec, ProjectRecord
from learning_at_home.testing import LoopClock, SimulatedDht, SimulatedNetwork, run_in_virtual_time
from learning_at_home.transport.connections import Connections

PREFIX = "bench"
ROUND_TRIP_S = 0.1
LIFE_S = 120
COLD_ROWS = 32


@dataclass(frozen=True, slots=True)
class Settings:
    """A square grid, shared by so many nodes; the last of them are dead: their cells are vacant."""

    grid: list[int]
    num_nodes: int
    dead: float
    k_best: int
    seed: int


class OurDirectory:
    """`top4`: seconds for a batch's exact choice. `cold-round-trips`: of a beam search, in a simulated network."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(1)
        self._settings = settings
        layer = LayerSpec(prefix=PREFIX, grid=tuple(settings.grid))
        self._project = ProjectRecord(id="benchmark", layers=(layer,)).check()
        clock = SystemClock()
        self._directory = Directory(self._project, clock)
        connections = Connections(Identity.generate(), clock)
        context = CallContext("benchmark", connections, self._directory, CallStats(), clock, Tracing(clock))
        self._living = LivingExperts(context, layer)
        self._connections = connections
        chance = random.Random(settings.seed)
        cells = list(range(math.prod(settings.grid)))
        chance.shuffle(cells)
        self._cells = [sorted(cells[number :: settings.num_nodes]) for number in range(settings.num_nodes)]
        self.ready()

    def ready(self) -> None:
        """Announce everybody anew: announcements run out while the side is stopped."""
        now_ms = int(time.time() * 1000)
        for number in range(int(self._settings.num_nodes * (1 - self._settings.dead))):
            person = Identity((number + 1).to_bytes(32, "big"))
            record = sign_record(
                person,
                node_key("benchmark", person.public_key),
                self._announcement(number).to_bytes(),
                sequence=now_ms,
                expires_ms=now_ms + LIFE_S * 1000,
            )
            self._directory.feed(record)

    def check(self) -> None:
        """Against sorting all living cells of a few rows."""
        torch.manual_seed(self._settings.seed)
        width, height = self._settings.grid
        lines = torch.randn(8, width + height)
        living = self._living.now()[1].cells_N.tolist()
        for row, chosen in zip(lines.tolist(), self._choose(lines).tolist(), strict=True):
            best = _by_score(row, living, width, height)[: self._settings.k_best]
            assert chosen == best, "not the best living cells"

    def measure(self, work: Work) -> float:
        if work.name == "cold-round-trips":
            return self._cold_round_trips()
        lines = torch.randn(work.rows, sum(self._settings.grid))
        return seconds_per_call(lambda: self._choose(lines), work)

    def close(self) -> None:
        self._connections.close()

    def _choose(self, lines: torch.Tensor) -> torch.Tensor:
        """What a DMoE layer does before it asks anybody."""
        return best_cells(lines, self._living.now()[1], self._settings.k_best)

    def _announcement(self, number: int) -> Announcement:
        return Announcement(
            project="benchmark",
            name=f"node {number}",
            endpoints=("tcp://127.0.0.1:1",),
            state="online",
            issued_ms=0,
            claims=(Claim(PREFIX, spans_of(self._cells[number]), 0),),
        )

    def _cold_round_trips(self) -> float:
        """Of a trainer who has just joined, until the best experts of its rows are known. Raises AssertionError."""
        network = SimulatedNetwork(one_way_s=ROUND_TRIP_S / 2, jitter=0.0, seed=self._settings.seed)
        chance = random.Random(self._settings.seed)
        width, height = self._settings.grid
        scores = [[chance.gauss(0, 1) for _ in range(width + height)] for _ in range(COLD_ROWS)]

        async def main() -> float:
            loop = asyncio.get_running_loop()
            async with SimulatedDht(network) as dht:
                nodes = await dht.grow(self._settings.num_nodes)
                told = (publish(node, self._project, self._announcement(number)) for number, node in enumerate(nodes))
                await asyncio.gather(*told)  # one by one the first would run out before the last is there
                trainer = await dht.join(client_only=True)
                directory = Directory(self._project, LoopClock(loop))
                began_s = loop.time()
                await directory.explore(trainer, PREFIX, scores, self._settings.k_best)
                took_s = loop.time() - began_s
                holders = directory.layer(PREFIX).holders
                for row in scores:
                    best = _by_score(row, range(width * height), width, height)[: self._settings.k_best]
                    assert all(holders[cell] for cell in best), "one of the best is not known"
                return took_s / ROUND_TRIP_S

        return round(run_in_virtual_time(main(), network), 3)


def _by_score(row: list[float], cells: Iterable[int], width: int, height: int) -> list[int]:
    """The best first, without any trick."""
    return sorted(cells, key=lambda cell: -(row[cell // height] + row[width + cell % height]))


if __name__ == "__main__":
    serve(lambda: OurDirectory(settings_of(Settings)))
