"""hivemind's beam search for a batch of rows, its DHT having answered before. Runs in the rivals' environment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hivemind import DHT
from hivemind.moe.client.beam_search import MoEBeamSearcher
from hivemind.moe.server.dht_handler import declare_experts
from hivemind.utils import get_dht_time

from benchmarks.worker import Work, seconds_per_call, serve, settings_of

PREFIX = "expert"
LIFE_S = 3_600.0
DECLARED_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Settings:
    grid: list[int]
    num_nodes: int
    k_best: int
    seed: int


class HivemindBeamSearch:
    """Few peers share the experts: the fewer, the faster its search."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._chance = np.random.default_rng(settings.seed)
        first = DHT(start=True, use_relay=False, use_auto_relay=False)
        known = [str(address) for address in first.get_visible_maddrs()]
        self._peers = [first]
        for _ in range(settings.num_nodes):
            self._peers.append(DHT(initial_peers=known, start=True, use_relay=False, use_auto_relay=False))
        width, height = settings.grid
        uids = [f"{PREFIX}.{row}.{column}" for row in range(width) for column in range(height)]
        expires_s = get_dht_time() + LIFE_S
        for number, start in enumerate(range(0, len(uids), DECLARED_AT_ONCE)):
            peer = self._peers[number % settings.num_nodes]
            declare_experts(peer, uids[start : start + DECLARED_AT_ONCE], expiration_time=expires_s)
        self._searcher = MoEBeamSearcher(self._peers[-1], f"{PREFIX}.", (width, height))

    def check(self) -> None:
        """It finds as many as it is asked for."""
        found = self._search(1)
        assert len(found[0]) == self._settings.k_best, f"{len(found[0])} experts found"

    def ready(self) -> None:
        """Its connections outlive a stop."""

    def measure(self, work: Work) -> float:
        self._search(work.rows)
        return seconds_per_call(lambda: self._search(work.rows), work)

    def close(self) -> None:
        for peer in self._peers:
            peer.terminate()

    def _search(self, num_rows: int) -> list[list[object]]:
        scores = [self._chance.standard_normal((num_rows, size)) for size in self._settings.grid]
        found: list[list[object]] = self._searcher.batch_find_best_experts(scores, self._settings.k_best)
        return found


if __name__ == "__main__":
    serve(lambda: HivemindBeamSearch(settings_of(Settings)))
