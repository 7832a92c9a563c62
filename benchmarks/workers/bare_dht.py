"""The bare `kademlia` package, which ours is built on: so many peers in this process. Run by benchmarks.sides."""

from __future__ import annotations

import asyncio
import random

from kademlia.network import Server

from benchmarks.dht_work import KEYS_HELD, VALUE_BYTES, seconds_of
from benchmarks.worker import Work, serve, settings_of
from benchmarks.workers.our_dht import Settings

HOST = "127.0.0.1"
KEY_BYTES = 20


class BareDht:
    """One event loop, which runs only while something is measured. Every value goes to k = 20 peers, as ours do."""

    def __init__(self, settings: Settings) -> None:
        self._runner = asyncio.Runner()
        self._chance = random.Random(settings.seed)
        self._servers: list[Server] = []
        self._held: dict[str, bytes] = {}
        self._runner.run(self._grow(settings.num_nodes))

    def check(self) -> None:
        """What was stored is found."""
        self._runner.run(self._get())

    def ready(self) -> None:
        """It waits for nobody, and refreshes once an hour."""

    def measure(self, work: Work) -> float:
        operation = {"get": self._get, "store": self._store}[work.name]
        return seconds_of(lambda: self._runner.run(operation()), work)

    def close(self) -> None:
        for server in self._servers:
            server.stop()
        self._runner.close()

    async def _grow(self, count: int) -> None:
        for _ in range(count):
            server = Server()
            await server.listen(0, HOST)
            known = self._chance.sample(self._servers, min(3, len(self._servers)))
            if known:
                await server.bootstrap([other.transport.get_extra_info("sockname") for other in known])
            self._servers.append(server)
        for _ in range(KEYS_HELD):
            await self._store()

    async def _store(self) -> None:
        key, value = self._chance.randbytes(KEY_BYTES).hex(), self._chance.randbytes(VALUE_BYTES)
        assert await self._chance.choice(self._servers).set(key, value), "nobody holds the value"
        self._held[key] = value

    async def _get(self) -> None:
        key, value = self._chance.choice(list(self._held.items()))
        assert await self._chance.choice(self._servers).get(key) == value, "a get brought another value"


if __name__ == "__main__":
    serve(lambda: BareDht(settings_of(Settings)))
