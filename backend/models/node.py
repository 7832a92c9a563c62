"""Nodes: who was ever seen in a project, and all they gave, as they report it."""

from __future__ import annotations

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from backend.models.base import Amount, Base, Bytes, Count, HexKey, ProjectId, Seconds, Words


class NodeModel(Base):
    """One node in one project. Totals outlive the node's restarts and ours."""

    __tablename__ = "nodes"

    project_id: Mapped[str] = mapped_column(ProjectId, ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True)
    public_key: Mapped[str] = mapped_column(HexKey, primary_key=True)
    name: Mapped[str] = mapped_column(String(80))
    agent: Mapped[str] = mapped_column(String(80))
    hardware: Mapped[str] = mapped_column(Words)  # JSON of coordinator_messages.Hardware
    first_seen_s: Mapped[float] = mapped_column(Seconds)
    last_seen_s: Mapped[float] = mapped_column(Seconds)
    state: Mapped[str] = mapped_column(String(16))
    state_since_s: Mapped[float] = mapped_column(Seconds)
    seconds_online: Mapped[float] = mapped_column(Amount)
    rows_forward: Mapped[int] = mapped_column(Count)
    rows_backward: Mapped[int] = mapped_column(Count)
    updates: Mapped[int] = mapped_column(Count)
    calls: Mapped[int] = mapped_column(Count)
    failures: Mapped[int] = mapped_column(Count)
    flop: Mapped[float] = mapped_column(Amount)
    # What of the node's running process is counted already: so nothing is counted twice when we start again.
    process_started_s: Mapped[float | None] = mapped_column(Seconds)
    process_counted: Mapped[str] = mapped_column(Words)  # JSON of rates.Counters
    announcement: Mapped[bytes | None] = mapped_column(Bytes)  # its last one: where to probe it after our restart
