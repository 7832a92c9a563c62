"""GET /api/v1/projects/{id}/nodes and /contributors."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from backend.http import Json, TheCoordinator, answers
from backend.live.portrait import contributors
from backend.nodes.schemas import ContributorsAnswer, NodesAnswer

router = APIRouter(prefix="/api/v1/projects/{project_id}", tags=["nodes"])


@router.get("/nodes", responses=answers(NodesAnswer))
async def nodes(project_id: str, coordinator: TheCoordinator) -> Response:
    """The nodes of a project as the nodes page shows them."""
    view = coordinator.watched(project_id).current_view(coordinator.settings.url, coordinator.now())
    return Json(NodesAnswer(view.at_s, view.nodes))


@router.get("/contributors", responses=answers(ContributorsAnswer))
async def all_contributors(project_id: str, coordinator: TheCoordinator) -> Response:
    """Contributions of all time, the most generous first."""
    return Json(ContributorsAnswer(coordinator.now(), contributors(coordinator.watched(project_id).swarm)))
