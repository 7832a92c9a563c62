"""The web application of a running coordinator: composition only."""

from __future__ import annotations

from fastapi import FastAPI

from backend import service_health
from backend.coordinator import Coordinator
from backend.errors import add_error_handlers
from backend.events import endpoints as events
from backend.http import describe
from backend.knocks import endpoints as knocks
from backend.live import endpoints as live
from backend.nodes import endpoints as nodes
from backend.projects import endpoints as projects
from backend.security_headers import SecurityHeaders
from backend.series import endpoints as series
from backend.source import LiveSource
from backend.telemetry import endpoints as telemetry
from dashboard.routes import create_router
from dashboard.static_files import mount_static_files
from learning_at_home.version import __version__


def create_app(coordinator: Coordinator) -> FastAPI:
    """The API, the websockets and the pages over one coordinator, whose life is the caller's."""
    app = FastAPI(
        title="Learning@home coordinator",
        version=__version__,
        description="What nodes, trainers and pages ask of a coordinator. Figures of nodes are reported, not verified.",
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # both pages would load their scripts from another host
        redoc_url=None,
    )
    app.state.coordinator = coordinator
    for feature in (projects, nodes, events, series, telemetry, live, knocks, service_health):
        app.include_router(feature.router)
    app.include_router(create_router(LiveSource(coordinator)))
    mount_static_files(app)
    add_error_handlers(app)
    app.add_middleware(SecurityHeaders)
    describe(app)
    return app
