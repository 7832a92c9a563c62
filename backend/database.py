"""The database: its engine, its sessions, and bringing its tables up to date. Async; holds no query."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from backend.locate_migrations import migrations_folder
from learning_at_home.errors import ConfigError

log = logging.getLogger(__name__)

# WAL: readers never wait for the one writer. NORMAL: a power cut may lose the last batch, never the file.
SQLITE_PRAGMAS = ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=5000")


class Database:
    """One engine and its sessions."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self._sessions = async_sessionmaker(engine, expire_on_commit=False)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A session whose work is rolled back at the end."""
        async with self._sessions() as session:
            yield session

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """A session that commits at the end, or rolls back when the block raises."""
        async with self._sessions.begin() as session:
            yield session


@asynccontextmanager
async def open_database(url: URL) -> AsyncIterator[Database]:
    """A database with all migrations applied. Raises ConfigError when it cannot be opened or is newer than this
    code.
    """
    shown = url.render_as_string(hide_password=True)
    try:
        engine = create_async_engine(url, pool_pre_ping=url.get_backend_name() != "sqlite")
    except ModuleNotFoundError as error:
        raise ConfigError(f"{shown} needs: pip install 'learning-at-home[postgres]' ({error})") from error
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", _set_pragmas)
    try:
        try:
            async with engine.begin() as connection:
                await connection.run_sync(upgrade)
        except CommandError as error:
            raise ConfigError(f"the database {shown} does not fit this version of Learning@home: {error}") from error
        except (SQLAlchemyError, OSError) as error:
            raise ConfigError(f"the database {shown} cannot be opened: {error}") from error
        yield Database(engine)
    finally:
        await engine.dispose()


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the tables behind `connection` up to `revision`."""
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _set_pragmas(connection: DBAPIConnection, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in SQLITE_PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
