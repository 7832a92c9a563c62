"""Events: what happened in a project, in words."""

from __future__ import annotations

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from backend.models.base import Base, Count, ProjectId, Seconds, Words


class EventModel(Base):
    """One line of the event list. Ids grow over all projects; the coordinator gives them before it writes."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "project_id", "id"),)

    id: Mapped[int] = mapped_column(Count, primary_key=True, autoincrement=False)
    project_id: Mapped[str] = mapped_column(ProjectId, ForeignKey("projects.id", ondelete="CASCADE"))
    at_s: Mapped[float] = mapped_column(Seconds)
    kind: Mapped[str] = mapped_column(String(16))
    subject: Mapped[str] = mapped_column(String(120))
    text: Mapped[str] = mapped_column(Words)
