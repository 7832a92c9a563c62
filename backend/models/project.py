"""Projects: the record as its owner last wrote it."""

from __future__ import annotations

from sqlalchemy.orm import Mapped, mapped_column

from backend.models.base import Base, Bytes, ProjectId, Seconds


class ProjectModel(Base):
    """One project. `record` is ProjectRecord.to_bytes()."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(ProjectId, primary_key=True)
    record: Mapped[bytes] = mapped_column(Bytes)
    revision: Mapped[int]
    created_s: Mapped[float] = mapped_column(Seconds)
    updated_s: Mapped[float] = mapped_column(Seconds)
