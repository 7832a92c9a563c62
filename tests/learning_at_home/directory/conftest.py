"""People, a project of two layers, and records as nodes would sign them."""

from collections.abc import Iterable

import pytest

from learning_at_home.dht.exchange import Found
from learning_at_home.dht.records import Record, newest_per_publisher, sign_record
from learning_at_home.directory.announcement import Announcement, Claim, layer_key, spans_of
from learning_at_home.identity import Identity
from learning_at_home.project import LayerSpec, ProjectRecord
from learning_at_home.testing import ManualClock


class FakeDht:
    """What a directory asks of a DHT, from memory."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.asked: list[bytes] = []
        self.answers = 3

    async def find_many(self, keys: Iterable[bytes]) -> dict[bytes, Found]:
        return {key: self._find(key) for key in keys}

    def _find(self, key: bytes) -> Found:
        self.asked.append(key)
        newest = newest_per_publisher(record for record in self.records if record.key == key).values()
        return Found(
            tuple(record for record in newest if not record.is_tombstone),
            tuple(record for record in newest if record.is_tombstone),
            self.answers,
        )


class Swarm:
    """Signs what alice, bob and carol announce, at the clock's time."""

    def __init__(self, clock: ManualClock) -> None:
        people = sorted((Identity(bytes([seed]) * 32) for seed in (1, 2, 3)), key=lambda person: person.peer_id)
        self.alice, self.bob, self.carol = people  # in the order of their node ids
        self.clock = clock
        self.project = ProjectRecord(
            id="digits", layers=(LayerSpec(prefix="ffn0", grid=(2, 3)), LayerSpec(prefix="ffn1", grid=(4,)))
        )

    def announcement(self, cells: dict[str, set[int]], *, claimed_ms: int = 0, **fields) -> Announcement:
        claims = tuple(Claim(prefix, spans_of(numbers), claimed_ms) for prefix, numbers in cells.items())
        settings = {
            "project": "digits",
            "name": "heron",
            "endpoints": ("tcp://127.0.0.1:1",),
            "state": "online",
            "issued_ms": 0,
        }
        return Announcement(**{**settings, "claims": claims, **fields})

    def record(
        self, person: Identity, cells: set[int], *, prefix: str = "ffn0", life_s: float = 60, tombstone=False, **fields
    ) -> Record:
        now_ms = int(self.clock.wall_s() * 1000)
        value = b"" if tombstone else self.announcement({prefix: cells}, **fields).to_bytes()
        expires_ms = now_ms + int(life_s * 1000)
        return sign_record(person, layer_key("digits", prefix), value, sequence=now_ms, expires_ms=expires_ms)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def swarm(clock: ManualClock) -> Swarm:
    return Swarm(clock)


@pytest.fixture
def fake_dht() -> FakeDht:
    return FakeDht()
