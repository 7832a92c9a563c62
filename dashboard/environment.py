"""The Jinja environment: autoescape always on, our filters, and the headers that every page carries.

Plain code; rendering a page takes some milliseconds and happens on the loop.
"""

from __future__ import annotations

from functools import cache

from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dashboard import drawing, formatting, health
from dashboard.contexts import Page
from dashboard.locate import templates_folder
from dashboard.static_files import static_url

PAGE_HEADERS = {
    # No inline script and no inline style anywhere: a hostile node name that slipped through escaping could not run.
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",  # a page is data of this second; going back must not show an old swarm as live
}


@cache
def environment() -> Environment:
    """One for the process. StrictUndefined: a name that a template misspells is an error, not an empty string."""
    made = Environment(
        loader=FileSystemLoader(templates_folder()),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(formatting.FILTERS)
    made.filters.update(
        scaled=formatting.scaled,
        hours=health.hours,
        glyph=health.glyph,
        tint=health.tint,
        event_glyph=health.event_glyph,
        event_tint=health.event_tint,
        brightness=drawing.brightness,
    )
    made.globals.update(
        static=static_url, line_path=drawing.line_path, chart_top=drawing.chart_top, stacked=drawing.stacked
    )
    return made


def render(request: Request, template: str, page: Page, status: int = 200) -> Response:
    """The page as a response. The template sees `page` and, for links, `root` (the path this app is mounted under)."""
    root = request.scope.get("root_path", "").rstrip("/")
    html = environment().get_template(template).render(page=page, root=root)
    return HTMLResponse(html, status, PAGE_HEADERS)
