"""Runs: trainings as their trainers report them, and their thinned curves."""

from __future__ import annotations

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from backend.models.base import Amount, Base, Count, HexKey, ProjectId, Seconds, Words


class RunModel(Base):
    """One run of one trainer."""

    __tablename__ = "runs"

    project_id: Mapped[str] = mapped_column(ProjectId, ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True)
    trainer: Mapped[str] = mapped_column(HexKey, primary_key=True)
    name: Mapped[str] = mapped_column(String(80), primary_key=True)
    trainer_name: Mapped[str] = mapped_column(String(80))
    step: Mapped[int] = mapped_column(Count)
    metrics: Mapped[str] = mapped_column(Words)  # JSON: the latest value of each
    started_s: Mapped[float] = mapped_column(Seconds)
    last_heard_s: Mapped[float] = mapped_column(Seconds)


class RunPointModel(Base):
    """One value of one metric at one step; a curve holds a bounded number of them."""

    __tablename__ = "run_points"

    project_id: Mapped[str] = mapped_column(ProjectId, ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True)
    trainer: Mapped[str] = mapped_column(HexKey, primary_key=True)
    run: Mapped[str] = mapped_column(String(80), primary_key=True)
    metric: Mapped[str] = mapped_column(String(80), primary_key=True)
    step: Mapped[int] = mapped_column(Count, primary_key=True)
    value: Mapped[float] = mapped_column(Amount)
