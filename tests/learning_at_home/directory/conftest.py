"""People, a project of two layers, and records as nodes would sign them."""

import itertools
from collections.abc import Sequence

import pytest

from learning_at_home.dht.records import Record, RecordVerifier, sign_record
from learning_at_home.dht.slot_exchange import FoundSlots, SlotAsk
from learning_at_home.dht.slots import SlotStorage
from learning_at_home.directory.announcement import Announcement, Claim, node_key, prefix_name, spans_of
from learning_at_home.directory.slot_rule import AnnouncementSlots
from learning_at_home.identity import Identity
from learning_at_home.project import LayerSpec, ProjectRecord
from learning_at_home.testing import ManualClock


class FakeDht:
    """What a directory asks of a DHT, from memory."""

    def __init__(self, project: ProjectRecord, clock: ManualClock) -> None:
        self.records: list[Record] = []
        self.asked: list[bytes] = []
        self.answers = 3
        self._names = [
            prefix_name(project.id, layer.prefix, layer.cells, indices)
            for layer in project.layers
            for depth in range(len(layer.grid))
            for indices in itertools.product(*map(range, layer.grid[:depth]))
        ]
        self._clock = clock

    async def find_slots(self, asks: Sequence[SlotAsk]) -> list[FoundSlots]:
        now_ms = int(self._clock.wall_s() * 1000)
        storage = SlotStorage(RecordVerifier(), AnnouncementSlots())
        for record in self.records:
            for name in self._names:
                storage.put(record, name, now_ms)
        self.asked += [ask.key for ask in asks]
        return [self._found(storage, ask, now_ms) for ask in asks]

    def _found(self, storage: SlotStorage, ask: SlotAsk, now_ms: int) -> FoundSlots:
        page = storage.page(ask.key, ask.first, ask.wanted, b"".join(ask.known), 1 << 20, now_ms)
        records = [Record.from_bytes(data) for data in page.records]
        return FoundSlots(
            {ask.first + offset: life_s for offset, life_s in enumerate(page.lives) if life_s},
            tuple(record for record in records if not record.is_tombstone),
            tuple(record for record in records if record.is_tombstone),
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
        self,
        person: Identity,
        cells: set[int] | dict[str, set[int]],
        *,
        life_s: float = 60,
        tombstone: bool = False,
        **fields,
    ) -> Record:
        """Of what this person announces; `cells`: those of ffn0, or of each layer."""
        now_ms = int(self.clock.wall_s() * 1000)
        of_layer = cells if isinstance(cells, dict) else {"ffn0": cells}
        value = b"" if tombstone else self.announcement(of_layer, **fields).to_bytes()
        expires_ms = now_ms + int(life_s * 1000)
        return sign_record(person, node_key("digits", person.public_key), value, sequence=now_ms, expires_ms=expires_ms)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def swarm(clock: ManualClock) -> Swarm:
    return Swarm(clock)


@pytest.fixture
def fake_dht(swarm: Swarm, clock: ManualClock) -> FakeDht:
    return FakeDht(swarm.project, clock)
