"""Migrations and repositories on a real SQLite file."""

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import URL, Connection, text

from backend.database import Database, open_database
from backend.events.repository import EventRepository
from backend.live.rates import Counters
from backend.live.recorder import take_batch, write_batch
from backend.live.rollups import Rollup
from backend.models.all_models import Base
from backend.nodes.repository import NodeRepository
from backend.projects.repository import ProjectRepository
from backend.projects.service import write_projects
from backend.runs.repository import RunRepository
from backend.series.repository import WHOLE_PROJECT, RollupRepository
from dashboard.view import Event
from learning_at_home.errors import ConfigError
from learning_at_home.project import LayerSpec, ProjectRecord
from tests.backend.kit import (
    ALICE,
    CAROL,
    DIGITS,
    NOW,
    announced,
    answer_probes,
    expert,
    report,
    serving_swarm,
    telemetry,
)


@pytest.fixture
def url(tmp_path: Path) -> URL:
    return URL.create("sqlite+aiosqlite", database=str(tmp_path / "a 100% odd name?.sqlite3"))


@pytest.fixture
async def database(url: URL):
    async with open_database(url) as opened:
        async with opened.writing() as session:
            await ProjectRepository(session).save(DIGITS, NOW)
        yield opened


async def test_migrations_make_exactly_the_tables_of_the_models(url: URL):
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return list(compare_metadata(context, Base.metadata))

    async with open_database(url) as database, database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []
        assert (await connection.execute(text("PRAGMA journal_mode"))).scalar() == "wal"


async def test_migrations_are_applied_once(url: URL):
    for _ in range(2):
        async with open_database(url) as database, database.engine.connect() as connection:
            assert (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalars().all() == [
                "0001"
            ]


async def test_a_database_from_the_future_is_refused_and_left_alone(url: URL):
    async with open_database(url) as database, database.writing() as session:
        await session.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    with pytest.raises(ConfigError, match="does not fit this version"):
        async with open_database(url):
            pass
    with pytest.raises(ConfigError, match="9999"):
        async with open_database(url):
            pass


async def test_a_file_that_is_no_database_is_refused_in_words(tmp_path: Path):
    path = tmp_path / "not.sqlite3"
    path.write_text("this is a letter, not a database, and it is long enough to be read as a header" * 20)

    with pytest.raises(ConfigError, match="cannot be opened"):
        async with open_database(URL.create("sqlite+aiosqlite", database=str(path))):
            pass


async def test_a_block_that_raises_writes_nothing(database: Database):
    async def write_and_fail() -> None:
        async with database.writing() as session:
            await EventRepository(session).add("digits", [Event(1, NOW, "joined", "alice", "joined")])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await write_and_fail()

    async with database.reading() as session:
        assert await EventRepository(session).last_id() == 0


def one_layer(**changes) -> ProjectRecord:
    return ProjectRecord(**({"id": "other", "layers": (LayerSpec(prefix="ffn0", grid=(2,)),)} | changes))


@pytest.mark.parametrize(
    "second, revision, title",
    [
        (one_layer(title="A"), 1, "A"),
        (one_layer(title="B"), 2, "B"),
        (one_layer(title="B", revision=7), 7, "B"),
    ],
)
async def test_a_file_that_changed_is_the_next_revision(database: Database, second, revision, title):
    for record in (one_layer(title="A"), second, second):
        async with database.writing() as session:
            await write_projects(session, [record], [], NOW)

    async with database.reading() as session:
        stored = await ProjectRepository(session).record("other")
    assert stored is not None
    assert (stored.revision, stored.title) == (revision, title)


async def test_flags_never_change_a_project_that_exists(database: Database):
    async with database.writing() as session:
        await write_projects(session, [], [one_layer(id="digits"), one_layer()], NOW)

    async with database.reading() as session:
        assert await ProjectRepository(session).all_records() == [DIGITS, one_layer()]


async def test_parts_of_a_span_are_added_up_at_every_resolution(database: Database):
    start = int(NOW // 86_400 * 86_400)
    for offset in (0, 10, 60, 3_600):
        async with database.writing() as session:
            await RollupRepository(session).add("digits", WHOLE_PROJECT, {start + offset: Rollup(updates=1, flop=0.5)})

    async with database.reading() as session:
        rollups = RollupRepository(session)
        counts = {
            resolution_s: [each.updates for _, each in await rollups.between("digits", resolution_s, start, NOW * 2)]
            for resolution_s in (10, 60, 3_600, 86_400)
        }
    assert counts == {10: [1, 1, 1, 1], 60: [2, 1, 1], 3_600: [3, 1], 86_400: [4]}


async def test_old_spans_go_and_days_stay(database: Database):
    start = int(NOW // 86_400 * 86_400)
    async with database.writing() as session:
        await RollupRepository(session).add("digits", WHOLE_PROJECT, {start: Rollup(updates=1)})
        await RollupRepository(session).prune(start + 500 * 86_400)

    async with database.reading() as session:
        kept = [
            resolution_s
            for resolution_s in (10, 60, 3_600, 86_400)
            if await RollupRepository(session).between("digits", resolution_s, 0, NOW * 2)
        ]
    assert kept == [86_400]


async def test_events_come_newest_first_and_in_pages(database: Database):
    async with database.writing() as session:
        await EventRepository(session).add("digits", [Event(n, NOW + n, "joined", "alice", "x") for n in range(1, 8)])
        await EventRepository(session).add("digits", [Event(7, NOW, "left", "alice", "written again")])

    async with database.reading() as session:
        events = EventRepository(session)
        assert [each.id for each in await events.latest("digits", 3)] == [7, 6, 5]
        assert [each.id for each in await events.latest("digits", 3, before_id=5)] == [4, 3, 2]
        assert (await events.latest("digits", 1))[0].kind == "left"
        assert await events.last_id() == 7


async def test_old_events_are_pruned(database: Database):
    async with database.writing() as session:
        events = EventRepository(session)
        await events.add("digits", [Event(1, NOW - 91 * 86_400, "joined", "a", "x"), Event(2, NOW, "joined", "a", "x")])
        await events.prune("digits", NOW)

    async with database.reading() as session:
        assert [each.id for each in await EventRepository(session).latest("digits", 10)] == [2]


async def test_a_swarm_comes_back_from_the_database_as_it_was(database: Database):
    swarm = serving_swarm()
    (node,) = swarm.nodes.values()
    swarm.node_told(node, telemetry(expert(0, updates=10, rows_forward=100, flop=1e12)), NOW + 1)
    trainer = swarm.trainer_introduced(CAROL.public_key, "carol-trains", NOW)
    for step in range(1_000):
        swarm.trainer_reported(trainer, report(step, loss=1.0 / (step + 1)), NOW)
    batch = take_batch(swarm, with_node_rollups=True)
    assert swarm.unsaved_events == []
    await write_batch(database, batch)

    async with database.reading() as session:
        (known,) = await NodeRepository(session).all_of("digits", NOW + 60)
        (run,) = await RunRepository(session).latest("digits")
    assert (known.public_key, known.name, known.state) == (ALICE.public_key, ALICE.name, "online")
    assert known.totals == node.totals == Counters(rows_forward=100, updates=10, flop=1e12)
    assert known.announcement == node.announcement
    assert known.announcement is not None
    known.announces(known.announcement, DIGITS)
    assert known.hears(telemetry(expert(0, updates=12, rows_forward=100, flop=1e12)), NOW + 61).updates == 2
    assert known.totals.updates == 12
    assert run.curves["loss"].points == swarm.book.runs[trainer.id, "first"].curves["loss"].points
    assert (run.step, run.live) == (999, False)


async def test_a_thinned_curve_replaces_its_stored_points(database: Database):
    swarm = serving_swarm()
    trainer = swarm.trainer_introduced(CAROL.public_key, "carol-trains", NOW)
    for step in range(2_000):
        swarm.trainer_reported(trainer, report(step, loss=float(step)), NOW)
        if step % 500 == 0:
            await write_batch(database, take_batch(swarm, with_node_rollups=False))
    await write_batch(database, take_batch(swarm, with_node_rollups=False))

    async with database.reading() as session:
        (run,) = await RunRepository(session).latest("digits")
    assert run.curves["loss"].points == swarm.book.runs[trainer.id, "first"].curves["loss"].points
    assert len(run.curves["loss"].points) <= 600


async def test_a_batch_with_nothing_new_is_empty(database: Database):
    swarm = serving_swarm()
    take_batch(swarm, with_node_rollups=False)

    assert take_batch(swarm, with_node_rollups=False).is_empty


async def test_a_run_that_memory_forgot_and_heard_of_again_began_when_it_began(database: Database):
    starts, swarm = [], serving_swarm()
    for again, (step, now) in enumerate(((9, NOW), (10, NOW + 100), (1, NOW + 200))):
        if again == 1:
            swarm = serving_swarm()  # which does not know it; the third report is of a run that began anew
        trainer = swarm.trainer_introduced(CAROL.public_key, "carol-trains", now)
        swarm.trainer_reported(trainer, report(step, loss=1.0), now)
        await write_batch(database, take_batch(swarm, with_node_rollups=False))
        async with database.reading() as session:
            (run,) = await RunRepository(session).latest("digits")
        starts.append((run.started_s, run.last_heard_s))

    assert starts == [(NOW, NOW), (NOW, NOW + 100), (NOW + 200, NOW + 200)]


async def test_of_too_many_nodes_those_that_were_seen_last_come_back(database: Database):
    swarm = serving_swarm()
    swarm.directory_seen([announced(ALICE), announced(CAROL, first=4, end=8)], NOW)
    answer_probes(swarm, NOW + 1)
    await write_batch(database, take_batch(swarm, with_node_rollups=True))

    async with database.reading() as session:
        (node,) = await NodeRepository(session).all_of("digits", NOW, limit=1)
    assert node.public_key == CAROL.public_key
