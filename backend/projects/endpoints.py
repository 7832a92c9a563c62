"""GET /api/v1/projects and what belongs to one project as a whole."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from backend.http import Json, TheCoordinator, answers
from backend.live.portrait import header, summary, tiles, verdict_of
from backend.projects.access import access_for
from backend.projects.schemas import ProjectAnswer
from dashboard.view import ProjectSummary, ProjectView
from learning_at_home.project import ProjectAccess

router = APIRouter(prefix="/api/v1/projects", tags=["projects"])


@router.get("", responses=answers(ProjectSummary, many=True))
async def projects(coordinator: TheCoordinator) -> Response:
    """All projects of this coordinator."""
    now, url = coordinator.now(), coordinator.settings.url
    return Json([summary(watched.swarm, url, now) for watched in coordinator.projects.values()])


@router.get("/{project_id}", responses=answers(ProjectAnswer))
async def project(project_id: str, coordinator: TheCoordinator) -> Response:
    """One project: its record, its state now, its totals as the hosts report them, its latest run."""
    watched, now = coordinator.watched(project_id), coordinator.now()
    swarm = watched.swarm
    if swarm.dirty:
        watched.advance(now)
    totals, run, counts = swarm.totals, swarm.book.latest(), swarm.health_counts()
    vacant = swarm.experts_total - sum(counts.values())
    return Json(
        ProjectAnswer(
            at_s=now,
            header=header(swarm, coordinator.settings.url),
            record=swarm.record,
            verdict=verdict_of(swarm),
            tiles=tiles(swarm, now),
            nodes_online=swarm.nodes_online,
            trainers_online=swarm.trainers_online,
            experts_serving=counts.get("serving", 0),
            experts_total=swarm.experts_total,
            health={**{str(health): number for health, number in counts.items()}, "vacant": vacant},
            updates_total=totals.updates,
            rows_total=totals.rows,
            rows_forward_total=totals.rows_forward,
            rows_backward_total=totals.rows_backward,
            calls_total=totals.calls,
            failures_total=totals.failures,
            flop_total=totals.flop,
            run=run.row() if run is not None else None,
        )
    )


@router.get("/{project_id}/access", responses=answers(ProjectAccess))
async def access(project_id: str, request: Request, coordinator: TheCoordinator) -> Response:
    """All that a node or a trainer needs to join."""
    return Json(access_for(request, coordinator, coordinator.watched(project_id).swarm.record))


@router.get("/{project_id}/view", responses=answers(ProjectView))
async def view(project_id: str, coordinator: TheCoordinator) -> Response:
    """What the overview page shows, and what the live websocket's snapshot is."""
    return Json(coordinator.watched(project_id).current_view(coordinator.settings.url, coordinator.now()))
