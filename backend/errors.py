"""Every refusal in one shape: {"error": name, "detail": words}. One handler each for our errors, FastAPI's and the
rest.
"""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from backend.http import ErrorAnswer, Json
from dashboard.routes import not_found_page
from learning_at_home.errors import (
    CallTimeout,
    DirectoryError,
    LearningAtHomeError,
    NetworkError,
    NodeOverloaded,
    UnknownLayer,
    UnknownProject,
    UsageError,
)

log = logging.getLogger(__name__)

# The first class that fits decides.
STATUS: tuple[tuple[type[LearningAtHomeError], int], ...] = (
    (UnknownProject, 404),
    (UnknownLayer, 404),
    (UsageError, 400),
    (NodeOverloaded, 503),
    (CallTimeout, 504),
    (NetworkError, 503),
    (DirectoryError, 503),
)
HTTP_NAMES = {404: "NotFound", 405: "MethodNotAllowed"}


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(LearningAtHomeError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


async def _ours(_request: Request, error: Exception) -> Response:
    assert isinstance(error, LearningAtHomeError)
    status = next((status for kind, status in STATUS if isinstance(error, kind)), 500)
    headers = {"Retry-After": f"{error.retry_after_s or 5:.0f}"} if status == 503 else None
    return Json(ErrorAnswer(type(error).__name__, error.message), status, headers)


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    detail = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:5])
    return Json(ErrorAnswer("UsageError", detail), 422)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404 and not request.url.path.startswith(("/api/", "/static/")):
        return not_found_page(request)
    name = HTTP_NAMES.get(error.status_code, "HttpError")
    return Json(ErrorAnswer(name, str(error.detail)), error.status_code, dict(error.headers or {}))


async def _unexpected(_request: Request, _error: Exception) -> Response:
    """A bug of ours. The server logs the traceback; the caller learns nothing of our insides."""
    return Json(ErrorAnswer("InternalError", "the coordinator failed to answer; its log says why"), 500)
