"""hivemind's DHT: so many peers, each with the two processes that it starts. Runs in the rivals' environment.

Driven like our own workers. Replication is its own default, 5 peers; ours store at 20.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from hivemind import DHT
from hivemind.moe.server.dht_handler import declare_experts
from hivemind.utils import get_dht_time

from benchmarks.dht_work import EXPERTS_DECLARED, GRID, LIFE_S, PREFIX, VALUE_BYTES, seconds_of
from benchmarks.worker import Work, serve, settings_of

STARTING_AT_ONCE = 4  # two cores start no more at a time
KEY_BYTES = 20


@dataclass(frozen=True, slots=True)
class Settings:
    num_nodes: int
    seed: int


class HivemindDht:
    """All peers know the first few."""

    def __init__(self, settings: Settings) -> None:
        self._chance = random.Random(settings.seed)
        self._peers: list[DHT] = [DHT(start=True, use_relay=False, use_auto_relay=False)]
        known = [str(address) for address in self._peers[0].get_visible_maddrs()]
        while len(self._peers) < settings.num_nodes:
            wave = [
                DHT(initial_peers=known, start=True, await_ready=False, use_relay=False, use_auto_relay=False)
                for _ in range(min(STARTING_AT_ONCE, settings.num_nodes - len(self._peers)))
            ]
            for peer in wave:
                peer.wait_until_ready()
            self._peers += wave

    def check(self) -> None:
        """What one stores another finds."""
        key, value = self._store()
        found = self._chance.choice(self._peers).get(key, latest=True)
        assert found is not None, "a get brought nothing"
        assert found.value == value, "a get brought another value"

    def ready(self) -> None:
        """Its connections outlive a stop."""

    def measure(self, work: Work) -> float:
        operation = {"store": self._store, "declare": self._declare}[work.name]
        return seconds_of(operation, work)

    def close(self) -> None:
        for peer in self._peers:
            peer.terminate()

    def _store(self) -> tuple[str, bytes]:
        key, value = self._chance.randbytes(KEY_BYTES).hex(), self._chance.randbytes(VALUE_BYTES)
        peer = self._chance.choice(self._peers)
        assert peer.store(key, value, expiration_time=get_dht_time() + LIFE_S), "nobody holds the value"
        return key, value

    def _declare(self) -> None:
        cells = self._chance.sample(range(GRID[0] * GRID[1]), EXPERTS_DECLARED)
        uids = [f"{PREFIX}.{cell // GRID[1]}.{cell % GRID[1]}" for cell in cells]
        declare_experts(self._peers[0], uids, expiration_time=get_dht_time() + LIFE_S)


if __name__ == "__main__":
    serve(lambda: HivemindDht(settings_of(Settings)))
