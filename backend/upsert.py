"""Insert or, where the key exists, update: the one statement that SQLite and PostgreSQL spell alike but SQLAlchemy
does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from backend.models.base import Base


async def upsert(
    session: AsyncSession,
    model: type[Base],
    rows: Sequence[Mapping[str, Any]],
    *,
    add: Sequence[str] = (),
    keep: Sequence[str] = (),
) -> None:
    """Write rows by their primary key. Where one exists, columns in `add` are added to what is there, those in `keep`
    stay as they are, all others are replaced.
    """
    if not rows:
        return
    table = model.__table__
    assert isinstance(table, Table)
    # Both dialects' inserts have the same method; only their classes differ.
    insert: Any = postgresql.insert(table) if session.get_bind().dialect.name == "postgresql" else sqlite.insert(table)
    keys = [column.name for column in table.primary_key]
    changes = {
        column.name: (column + insert.excluded[column.name]) if column.name in add else insert.excluded[column.name]
        for column in table.columns
        if column.name not in keys and column.name in rows[0] and column.name not in keep
    }
    statement = insert.on_conflict_do_update(index_elements=keys, set_=changes)
    await session.execute(statement, [dict(row) for row in rows])
