"""What all endpoints share: finding the coordinator, answering in JSON, describing answers for OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import msgspec
from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.background import BackgroundTask
from starlette.requests import HTTPConnection
from starlette.responses import Response

from backend.coordinator import Coordinator
from learning_at_home.version import __version__

_described: dict[str, type] = {}


def _coordinator_of(connection: HTTPConnection) -> Coordinator:
    coordinator: Coordinator = connection.app.state.coordinator
    return coordinator


TheCoordinator: TypeAlias = Annotated[Coordinator, Depends(_coordinator_of)]


class Json(Response):
    """Any value that msgspec can write. NaN and infinity become null: JSON has none."""

    media_type = "application/json"

    def __init__(
        self,
        content: object,
        status_code: int = 200,
        headers: dict[str, str] | None = None,
        background: BackgroundTask | None = None,
    ) -> None:
        super().__init__(content, status_code, {"Cache-Control": "no-store", **(headers or {})}, background=background)

    def render(self, content: object) -> bytes:
        return msgspec.json.encode(content)


class ErrorAnswer(msgspec.Struct, frozen=True):
    """What every refused request gets."""

    error: str  # name of the error in docs/errors.md
    detail: str


def answers(kind: type, *, many: bool = False) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of an endpoint that answers with `kind` (or a list of it) and may be refused."""
    _described[kind.__name__] = kind
    _described[ErrorAnswer.__name__] = ErrorAnswer
    reference = {"$ref": f"#/components/schemas/{kind.__name__}"}
    schema: dict[str, Any] = {"type": "array", "items": reference} if many else reference
    error = {"$ref": "#/components/schemas/ErrorAnswer"}
    return {
        200: {"content": {"application/json": {"schema": schema}}, "description": (kind.__doc__ or "").split("\n")[0]},
        "4XX": {"content": {"application/json": {"schema": error}}, "description": "Refused"},
    }


def describe(app: FastAPI) -> None:
    """Make app.openapi() describe our answers, which are msgspec structs that FastAPI does not know."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=__version__, routes=app.routes, description=app.description)
            _, components = msgspec.json.schema_components(
                list(_described.values()), ref_template="#/components/schemas/{name}"
            )
            schema.setdefault("components", {}).setdefault("schemas", {}).update(components)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
