"""What the pages ask, answered: dashboard.view.DashboardSource over the running coordinator."""

from __future__ import annotations

from backend.coordinator import Coordinator
from backend.live import portrait
from backend.series.service import series_of
from dashboard.view import ChartName, Contributor, ProjectSummary, ProjectView, Series


class LiveSource:
    """The dashboard's view of the coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    async def projects(self) -> list[ProjectSummary]:
        now, url = self._coordinator.now(), self._coordinator.settings.url
        return [portrait.summary(each.swarm, url, now) for each in self._coordinator.projects.values()]

    async def view(self, project_id: str) -> ProjectView:
        watched = self._coordinator.watched(project_id)
        return watched.current_view(self._coordinator.settings.url, self._coordinator.now())

    async def contributors(self, project_id: str) -> list[Contributor]:
        return portrait.contributors(self._coordinator.watched(project_id).swarm)

    async def series(self, project_id: str, chart: ChartName, span_s: float) -> Series:
        return await series_of(self._coordinator, project_id, chart, span_s)
