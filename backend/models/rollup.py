"""Rollups: what happened in each 10 s, minute, hour and day, of a project as a whole and of each node.

Every column is a sum, so that a coarser span is the sum of its finer ones, and a span that a restart cut in two is
added up by the database. A mean is a sum divided by its samples.
"""

from __future__ import annotations

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from backend.models.base import Amount, Base, Count, HexKey, ProjectId


class RollupModel(Base):
    """One span of one subject; `node` is empty for the project as a whole."""

    __tablename__ = "rollups"
    __table_args__ = (Index(None, "resolution_s", "start_s"),)

    project_id: Mapped[str] = mapped_column(ProjectId, ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True)
    node: Mapped[str] = mapped_column(HexKey, primary_key=True)
    resolution_s: Mapped[int] = mapped_column(primary_key=True)
    start_s: Mapped[int] = mapped_column(Count, primary_key=True)
    rows_forward: Mapped[int] = mapped_column(Count)
    rows_backward: Mapped[int] = mapped_column(Count)
    calls: Mapped[int] = mapped_column(Count)
    failures: Mapped[int] = mapped_column(Count)
    updates: Mapped[int] = mapped_column(Count)
    flop: Mapped[float] = mapped_column(Amount)
    samples: Mapped[int]  # how often the gauges below were read
    serving_sum: Mapped[float] = mapped_column(Amount)
    degraded_sum: Mapped[float] = mapped_column(Amount)
    stale_sum: Mapped[float] = mapped_column(Amount)
    lost_sum: Mapped[float] = mapped_column(Amount)
    orphaned_sum: Mapped[float] = mapped_column(Amount)
    nodes_online_sum: Mapped[float] = mapped_column(Amount)
    latency_samples: Mapped[int]
    p50_sum: Mapped[float] = mapped_column(Amount)
    p95_sum: Mapped[float] = mapped_column(Amount)
    # Seconds that a node spent in each state (zero for the project as a whole).
    online_s: Mapped[float] = mapped_column(Amount)
    degraded_s: Mapped[float] = mapped_column(Amount)
    stale_s: Mapped[float] = mapped_column(Amount)
    paused_s: Mapped[float] = mapped_column(Amount)
    offline_s: Mapped[float] = mapped_column(Amount)
