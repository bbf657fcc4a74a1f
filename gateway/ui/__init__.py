"""Serves the dashboard at `/ui/`: static files, compressed once, under a Content-Security-Policy that allows only them.

The files hold no data, so they need no key; every number on the page comes from an endpoint that requires one.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from gateway.endpoints.handler import json_response
from gateway.errors import error_body

ASSETS = Path(__file__).parent / "assets"
INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".LICENSE": "text/plain; charset=utf-8",
}
"""Media types of the files; files with other endings are not served."""
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
    "vary": "accept-encoding",
}


@dataclass(frozen=True, slots=True)
class Page:
    """One file, plain and compressed."""

    media_type: str
    etag: str
    plain: bytes = field(repr=False)
    packed: bytes = field(repr=False)


def page_routes() -> list[Route]:
    """`/ui/` and its files. `/ui` redirects there by a relative address, which also works behind a proxy's prefix."""
    return [
        Route("/ui", _to_folder, include_in_schema=False),
        Route("/ui/{path:path}", _file, include_in_schema=False),
    ]


async def _to_folder(_: Request) -> Response:
    return RedirectResponse("ui/", status_code=308)


async def _file(request: Request) -> Response:
    page = _pages().get(request.path_params["path"] or INDEX)
    if page is None:
        message = f"GET {request.url.path}: the page has no such file"
        return json_response(error_body(message, kind="invalid_request_error", code="not_found"), status=404)
    headers = HEADERS | {"etag": page.etag}
    if request.headers.get("if-none-match") == page.etag:
        return Response(status_code=304, headers=headers)
    packs = "gzip" in request.headers.get("accept-encoding", "")
    content = page.packed if packs else page.plain
    encoding = {"content-encoding": "gzip"} if packs else {}
    return Response(content, headers=headers | encoding, media_type=page.media_type)


@cache
def _pages() -> dict[str, Page]:
    """The files by path, read at the first request, so that an unused dashboard takes no memory."""
    files = (path for path in sorted(ASSETS.rglob("*")) if path.suffix in TYPES)
    return {path.relative_to(ASSETS).as_posix(): _page(path) for path in files}


def _page(path: Path) -> Page:
    plain = path.read_bytes()
    digest = hashlib.sha256(plain).hexdigest()[:20]
    return Page(TYPES[path.suffix], f'"{digest}"', plain, gzip.compress(plain, mtime=0))
