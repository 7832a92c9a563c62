"""Stylesheet, scripts and icons: served under an address that holds the hash of them all, so they may be kept.

`/static/<hash>/...` is immutable; the modules import each other by relative addresses and so stay under one hash: a
page never runs with half of an upgrade. `/static/...` is the same without the promise (ETag, asked again each time).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from dashboard.locate import static_folder

FOR_EVER = "public, max-age=31536000, immutable"
ASK_AGAIN = "no-cache"
# Named here: a machine's own table may call JavaScript text/plain, which browsers refuse as a module.
MEDIA_TYPES: Mapping[str, str] = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@cache
def static_version() -> str:
    """Twelve hex digits over the names and contents of all static files, read once in a process."""
    digest = hashlib.sha256()
    folder = static_folder()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def static_url(path: str) -> str:
    """`js/main.js` -> `/static/0123456789ab/js/main.js`; the template puts the app's root path before it."""
    return f"/static/{static_version()}/{path}"


def mount_static_files(app: Starlette) -> None:
    """Serve the static folder under both addresses."""
    app.mount(f"/static/{static_version()}", _Files(static_folder(), FOR_EVER), name="static-versioned")
    app.mount("/static", _Files(static_folder(), ASK_AGAIN), name="static")


class _Files(StaticFiles):
    def __init__(self, folder: Path, cache_control: str) -> None:
        super().__init__(directory=folder)
        self._cache_control = cache_control

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """With our caching, our media types and no guessing by the browser."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = self._cache_control
        response.headers["X-Content-Type-Options"] = "nosniff"
        if (media_type := MEDIA_TYPES.get(Path(full_path).suffix)) is not None:
            response.headers["Content-Type"] = media_type
        return response
