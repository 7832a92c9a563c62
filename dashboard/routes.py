"""The pages' addresses. Parse, ask the source, render; what a page shows is decided in contexts.py and the templates.

Async. The backend's app does:

    app.include_router(create_router(source))
    mount_static_files(app)                      # from dashboard.static_files
    # and, for an address that is nobody's and not below /api:
    return not_found_page(request)
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from dashboard import contexts
from dashboard.environment import render
from dashboard.view import ChartName, DashboardSource
from learning_at_home.errors import UnknownProject

MAX_SPAN_S = 90 * 86_400.0  # the longest button; the backend keeps daily rollups beyond it


def create_router(source: DashboardSource) -> APIRouter:
    """All pages under `/` and `/p/{project_id}`, plus the JSON that their charts and the contributors' table fetch."""
    router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

    @router.get("/", name="projects")
    async def projects(request: Request) -> Response:
        """The list of projects; with exactly one there is nothing to choose, so it opens."""
        summaries = await source.projects()
        if len(summaries) == 1:
            return RedirectResponse(request.url_for("overview", project_id=summaries[0].header.id).path, 302)
        return render(request, "projects.html", contexts.projects_page(summaries))

    @router.get("/p/{project_id}", name="overview")
    async def overview(request: Request, project_id: str) -> Response:
        try:
            view = await source.view(project_id)
        except UnknownProject as error:
            return not_found_page(request, error.message)
        return render(request, "overview.html", contexts.overview_page(view, layer=request.query_params.get("layer")))

    @router.get("/p/{project_id}/experts", name="experts")
    async def experts(request: Request, project_id: str) -> Response:
        try:
            view = await source.view(project_id)
        except UnknownProject as error:
            return not_found_page(request, error.message)
        return render(request, "experts.html", contexts.experts_page(view, request.query_params.get("sort")))

    @router.get("/p/{project_id}/nodes", name="nodes")
    async def nodes(request: Request, project_id: str) -> Response:
        try:
            view = await source.view(project_id)
        except UnknownProject as error:
            return not_found_page(request, error.message)
        return render(request, "nodes.html", contexts.nodes_page(view, request.query_params.get("sort")))

    @router.get("/p/{project_id}/contributors", name="contributors")
    async def contributors(request: Request, project_id: str) -> Response:
        try:
            view = await source.view(project_id)
            people = await source.contributors(project_id)
        except UnknownProject as error:
            return not_found_page(request, error.message)
        return render(
            request, "contributors.html", contexts.contributors_page(view, people, request.query_params.get("sort"))
        )

    @router.get("/p/{project_id}/join", name="join")
    async def join(request: Request, project_id: str) -> Response:
        try:
            view = await source.view(project_id)
        except UnknownProject as error:
            return not_found_page(request, error.message)
        return render(request, "join.html", contexts.join_page(view))

    @router.get("/p/{project_id}/contributors.json")
    async def contributors_json(project_id: str) -> Response:
        """The contributors' table as values: an open page asks every half a minute."""
        try:
            return _json(await source.contributors(project_id))
        except UnknownProject as error:
            return _json({"error": "UnknownProject", "detail": error.message}, status=404)

    @router.get("/p/{project_id}/series/{chart}.json")
    async def series_json(
        project_id: str, chart: ChartName, span_s: Annotated[float, Query(gt=0, le=MAX_SPAN_S)] = 300.0
    ) -> Response:
        """One chart over another span than the last five minutes."""
        try:
            return _json(await source.series(project_id, chart, span_s))
        except UnknownProject as error:
            return _json({"error": "UnknownProject", "detail": error.message}, status=404)

    return router


def not_found_page(request: Request, detail: str = "") -> Response:
    """The page for an address that leads nowhere, status 404."""
    return render(request, "not_found.html", contexts.not_found_page(detail), status=404)


def _json(value: object, status: int = 200) -> Response:
    return Response(
        msgspec.json.encode(value), status, {"Cache-Control": "no-store"}, media_type="application/json; charset=utf-8"
    )
