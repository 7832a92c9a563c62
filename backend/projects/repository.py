"""Projects in the database."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.models.project import ProjectModel
from learning_at_home.project import ProjectRecord


class ProjectRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def all_records(self) -> list[ProjectRecord]:
        """Every project, in the order in which they were made."""
        rows = await self._session.scalars(select(ProjectModel).order_by(ProjectModel.created_s, ProjectModel.id))
        return [ProjectRecord.from_bytes(row.record) for row in rows]

    async def record(self, project_id: str) -> ProjectRecord | None:
        row = await self._session.get(ProjectModel, project_id)
        return None if row is None else ProjectRecord.from_bytes(row.record)

    async def save(self, record: ProjectRecord, now: float) -> None:
        """Add a project or replace its record."""
        row = await self._session.get(ProjectModel, record.id)
        if row is None:
            self._session.add(
                ProjectModel(
                    id=record.id,
                    record=record.to_bytes(),
                    revision=record.revision,
                    created_s=now,
                    updated_s=now,
                )
            )
        else:
            row.record, row.revision, row.updated_s = record.to_bytes(), record.revision, now
