"""The recorder: it waits for a database that cannot be written now, and drops what can never be written."""

import asyncio

import pytest
from sqlalchemy.exc import IntegrityError, OperationalError

from backend.live import recorder as recorder_module
from backend.live.recorder import MAX_WAITING, Batch, Recorder, take_batch
from tests.backend.kit import BOB, CAROL, NOW, announced, eventually, introduce, report, serving_swarm

LOCKED = OperationalError("INSERT", {}, Exception("database is locked"))
POISON = IntegrityError("INSERT", {}, Exception("not this"))


class Desk:
    """Stands for the database: it takes batches, or refuses them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refuses: list[Exception] = []
        self.written: list[Batch] = []
        monkeypatch.setattr(recorder_module, "write_batch", self.write)

    async def write(self, _database: object, batch: Batch) -> None:
        if self.refuses:
            raise self.refuses.pop(0)
        self.written.append(batch)


@pytest.fixture
def desk(monkeypatch):
    return Desk(monkeypatch)


def made_recorder(swarm, now=lambda: NOW) -> Recorder:
    return Recorder(None, lambda: [swarm], now)  # type: ignore[arg-type]


async def test_what_cannot_be_written_now_is_written_later_in_its_order(desk):
    swarm = serving_swarm()
    recorder = made_recorder(swarm)
    desk.refuses = [LOCKED, OSError("the disk is full")]
    for _ in range(2):
        await recorder.flush()
        assert desk.written == []
    swarm.rollups.at(NOW).gauge({}, 1)
    await recorder.flush()

    assert [bool(batch.events) for batch in desk.written] == [True, False]
    assert recorder.dropped == 0


@pytest.mark.parametrize("error", [POISON, OverflowError("too large for an INTEGER"), ValueError("a NUL byte")])
async def test_a_batch_that_can_never_be_written_is_dropped_and_counted_and_the_queue_goes_on(desk, error, caplog):
    swarm = serving_swarm()
    recorder = made_recorder(swarm)
    desk.refuses = [LOCKED, error]
    await recorder.flush()
    swarm.rollups.at(NOW).gauge({}, 1)
    await recorder.flush()

    assert recorder.dropped == 1
    assert len(desk.written) == 1
    assert "dropped" in caplog.text


async def test_the_oldest_go_when_too_many_wait(desk):
    swarm = serving_swarm()
    recorder = made_recorder(swarm)
    desk.refuses = [LOCKED] * (MAX_WAITING + 5)
    for number in range(MAX_WAITING + 5):
        swarm.rollups.at(NOW + 10 * number).gauge({}, 1)
        await recorder.flush()
    swarm.rollups.at(NOW + 10_000).gauge({}, 1)
    await recorder.flush()

    assert len(desk.written) == MAX_WAITING


async def test_news_are_written_within_two_seconds_and_the_rest_later(desk, monkeypatch):
    monkeypatch.setattr(recorder_module, "WRITE_NEWS_S", 0.001)
    swarm = serving_swarm()
    times = [NOW]
    task = asyncio.create_task(made_recorder(swarm, lambda: times[0]).run())
    await eventually(lambda: len(desk.written) == 1)

    swarm.rollups.at(NOW).gauge({}, 1)
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert len(desk.written) == 1  # no news: it waits for its time
    times[0] += recorder_module.WRITE_EVERY_S
    await eventually(lambda: len(desk.written) == 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_the_books_of_strangers_are_emptied_and_not_written():
    swarm = serving_swarm()
    stranger = introduce(swarm, BOB, NOW)
    swarm.directory_seen([announced(BOB, first=4, end=8)], NOW)
    for minute in range(5):
        stranger.spend_time(NOW + 60 * minute)
    batch = take_batch(swarm, with_node_rollups=True)

    assert stranger.id not in batch.node_rollups
    assert stranger.id not in [node.id for node in batch.nodes]
    assert stranger.rollups.take() == {}


def test_a_run_that_has_to_make_room_is_written_before_it_is_forgotten():
    swarm = serving_swarm()
    trainer = swarm.trainer_introduced(CAROL.public_key, CAROL.name, NOW)
    for number in range(6):
        swarm.trainer_reported(trainer, report(1, run=f"run {number}", loss=1.0), NOW + number)

    assert {run.name for run in take_batch(swarm, with_node_rollups=False).runs} == {f"run {n}" for n in range(6)}
