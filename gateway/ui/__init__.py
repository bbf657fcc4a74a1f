"""Serves the dashboard at `/ui/`: static files under a Content-Security-Policy that allows only them.

The files hold no data, so they need no key; every number on the page comes from an endpoint that requires one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

ASSETS = Path(__file__).parent / "assets"
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types lit-html",
    )
)
"""Content-Security-Policy: no text of a prompt or an answer can become script or markup, nor leave for another host."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


class _Page(StaticFiles):
    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers.update(HEADERS)
        return response


def page_routes() -> list[BaseRoute]:
    """`/ui/` and its files. `/ui` redirects there by a relative address, which also works behind a proxy's prefix."""
    files = GZipMiddleware(_Page(directory=ASSETS, html=True), compresslevel=5)
    return [Route("/ui", _to_folder, include_in_schema=False), Mount("/ui", files)]


async def _to_folder(_: Request) -> Response:
    return RedirectResponse("ui/", status_code=308)
