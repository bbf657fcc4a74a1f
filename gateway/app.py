"""The ASGI application: its routes, its lifespan, the browser policy, and the errors that no endpoint handles.

Chat requests skip Starlette: `_App` passes them through `CrossOriginMiddleware` straight to the `ChatEndpoint` of their
API (`gateway.chat`). Starlette routes everything else. `gateway.main` calls `create_app` in each worker process.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from coe.core import PATHS
from coe.errors import RequestError
from gateway.chat import ChatEndpoint, respond
from gateway.dialects import error_body, headers_of
from gateway.dialects.chat import CHAT
from gateway.dialects.messages import MESSAGES, refusal
from gateway.endpoints.routes import document, endpoint_routes
from gateway.observability.state_metrics import add_state_metrics
from gateway.services import Services
from gateway.ui import page_routes

SIGNIFICANT_SLASH_PREFIXES = ("/ui/", "/v1/documents/")
"""Path prefixes under which a trailing slash is significant. Elsewhere it is ignored."""
ALLOWED_METHODS = ("GET", "POST", "DELETE")
PREFLIGHT_CACHE_SECONDS = 600
"""Seconds that browsers cache the response to a preflight request."""


Serve = Coroutine[Any, Any, None]
"""A coroutine that serves a request. Functions return it unawaited, since each further coroutine takes time."""
App = Callable[[Scope, Receive, Send], Serve]
"""An ASGI application."""


class CrossOriginMiddleware:
    """An ASGI application in front of `app`. It uses the policy of the current snapshot, so a reload changes it.
    `count` is called with the error code of every refusal."""

    def __init__(self, app: App, services: Services, *, count: Callable[[str], None]) -> None:
        self._app = app
        self._services = services
        self._count = count
        self._cors = _with_cors(app)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Serve:
        error, cross_origin = self._services.snapshot.access.browsers.check(scope)
        if error is not None:
            self._count(error.code)
            refuse = partial(_refuse, error)
            return (_with_cors(refuse) if cross_origin else refuse)(scope, receive, send)
        return (self._cors if cross_origin else self._app)(scope, receive, send)


def _with_cors(app: ASGIApp) -> CORSMiddleware:
    """Adds the CORS headers for any origin: BrowserPolicy has decided before which requests get here. Cookies are not
    allowed, as the API has none."""
    return CORSMiddleware(
        app,
        allow_origin_regex=r"(?s).*",
        allow_methods=ALLOWED_METHODS,
        allow_headers=["*"],  # clients of OpenAI and Anthropic send their own headers
        expose_headers=exposed_headers(),
        allow_private_network=True,
        max_age=PREFLIGHT_CACHE_SECONDS,
    )


def exposed_headers() -> tuple[str, ...]:
    """Response headers that scripts of allowed origins may read."""
    return *document()["paths"][PATHS["chat"]]["post"]["responses"]["200"]["headers"], "retry-after"


async def _refuse(error: RequestError, scope: Scope, _: Receive, send: Send) -> None:
    dialect = MESSAGES if scope["path"].startswith("/v1/messages") else CHAT
    headers = [(b"vary", b"Origin"), *headers_of(error)]
    await respond(send, status=error.status, body=dialect.error_body(error), headers=headers)


_log = logging.getLogger("gateway")


def create_app(open_services: Callable[[], AbstractAsyncContextManager[Services]]) -> Starlette:
    """Build the application. `open_services` runs in the event loop that serves, because connection pools need it."""

    @asynccontextmanager
    async def lifespan(app: _App) -> AsyncIterator[None]:
        async with open_services() as services:
            app.state.services = services
            app.serve(endpoint_routes(services))
            add_state_metrics(services.metrics, services)
            count = partial(services.metrics.count, "coe_refused_total")
            app.middleware = CrossOriginMiddleware(app.dispatch, services, count=count)
            yield

    return _App(lifespan=lifespan, exception_handlers={HTTPException: _http_error, Exception: _internal_error})


class _App(Starlette):
    """Dispatches chat requests to their endpoints, which handle all their errors, and the rest to Starlette."""

    middleware: CrossOriginMiddleware
    chats: Mapping[str, ChatEndpoint] = {}
    """Chat request handlers by path."""
    paths: frozenset[str] = frozenset()
    """Paths of all endpoints."""

    def serve(self, routes: Sequence[Route]) -> None:
        """Serve these endpoints, and the page."""
        self.chats = {route.path: route.endpoint for route in routes if isinstance(route.endpoint, ChatEndpoint)}
        self.paths = frozenset(route.path for route in routes)
        self.router.redirect_slashes = False
        self.router.routes[:] = [*routes, *page_routes()]

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Serve:
        if scope["type"] == "http":
            return self.middleware(scope, receive, send)
        return super().__call__(scope, receive, send)

    def dispatch(self, scope: Scope, receive: Receive, send: Send) -> Serve:
        """Handle a request that passed the browser policy. A slash at the end of its path is ignored."""
        path: str = scope["path"]
        if path[-1:] == "/" and (
            (bare := path.rstrip("/") or "/") in self.paths or not path.startswith(SIGNIFICANT_SLASH_PREFIXES)
        ):
            scope["path"] = path = bare
        if scope["method"] == "POST" and (endpoint := self.chats.get(path)) is not None:
            return endpoint(scope, receive, send)
        return super().__call__(scope, receive, send)


async def _http_error(request: Request, error: Exception) -> Response:
    """The response of the HTTP router itself (404, 405)."""
    assert isinstance(error, HTTPException)
    allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
    if allowed and request.method == "OPTIONS":
        return Response(status_code=204, headers={"allow": f"{allowed}, OPTIONS"})
    code = "not_found" if error.status_code == 404 else "invalid_request"
    reason = f"this path takes {allowed}" if allowed else _unknown_path(request.url.path, request.app.paths)
    response = _refused(request, error.status_code, reason, kind="invalid_request_error", code=code)
    response.headers.update(error.headers or {})
    return response


def _unknown_path(path: str, known: Collection[str]) -> str:
    """Return why a path is not found. Base URLs often have a `/v1` too many or too few."""
    shorter = path.replace("/v1/v1/", "/v1/", 1)
    for meant in (f"/v1{path}", shorter, path.removeprefix("/v1")):
        if meant != path and meant in known:
            return (
                f"there is no such path; did you mean {meant}? The base URL ends in /v1 for OpenAI's clients, and "
                "without it for Anthropic's"
            )
    return "there is no such path; see /openapi.json"


async def _internal_error(request: Request, error: Exception) -> Response:
    """The response to an exception that no endpoint handled."""
    _log.error("an endpoint failed", exc_info=error)
    message = "internal error; the gateway's own log has the reason"
    return _refused(request, 500, message, kind="api_error", code="internal_error")


def _refused(request: Request, status: int, reason: str, *, kind: str, code: str) -> Response:
    """An error response in the form of the path's API: Anthropic's or OpenAI's."""
    message = f"{request.method} {request.url.path}: {reason}"
    anthropic = request.url.path.startswith("/v1/messages") or "anthropic-version" in request.headers
    body = refusal(status, message) if anthropic else error_body(message, kind=kind, code=code)
    return Response(body, status_code=status, media_type="application/json")
