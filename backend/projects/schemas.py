"""What the API tells of projects."""

from __future__ import annotations

import msgspec

from dashboard.view import ProjectHeader, RunRow, Tiles, Verdict
from learning_at_home.project import ProjectRecord


class ProjectAnswer(msgspec.Struct, frozen=True):
    """One project now. Totals are what the hosts report of all time, not verified."""

    at_s: float
    header: ProjectHeader
    record: ProjectRecord
    verdict: Verdict
    tiles: Tiles
    nodes_online: int
    trainers_online: int
    experts_serving: int
    experts_total: int
    health: dict[str, int]  # state -> experts; vacant ones included
    updates_total: int
    rows_total: int
    rows_forward_total: int
    rows_backward_total: int
    calls_total: int
    failures_total: int
    flop_total: float
    run: RunRow | None  # the latest one, with its latest metrics (loss, accuracy, ...)
    verified: bool = False
    source: str = "reported"
