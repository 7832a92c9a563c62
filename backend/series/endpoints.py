"""GET /api/v1/projects/{id}/series/{chart}."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from backend.http import Json, TheCoordinator, answers
from backend.live.curves import CHART_SPAN_S
from backend.series.service import MAX_SPAN_S, series_of
from dashboard.view import ChartName, Series

router = APIRouter(prefix="/api/v1/projects/{project_id}", tags=["series"])


@router.get("/series/{chart}", responses=answers(Series))
async def series(
    project_id: str,
    chart: ChartName,
    coordinator: TheCoordinator,
    span_s: Annotated[float, Query(gt=0, le=MAX_SPAN_S)] = CHART_SPAN_S,
) -> Response:
    """One chart over the last `span_s` seconds."""
    return Json(await series_of(coordinator, project_id, chart, span_s))
