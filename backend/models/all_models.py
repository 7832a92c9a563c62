"""Every table, imported in one place, so that Alembic sees them all."""

from __future__ import annotations

from backend.models.base import Base
from backend.models.event import EventModel
from backend.models.node import NodeModel
from backend.models.project import ProjectModel
from backend.models.rollup import RollupModel
from backend.models.run import RunModel, RunPointModel

__all__ = ["Base", "EventModel", "NodeModel", "ProjectModel", "RollupModel", "RunModel", "RunPointModel"]
