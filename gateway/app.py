"""The ASGI application: routes, and what must be open while they are served."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.access.authorization import guarded
from gateway.access.cors import CrossOriginMiddleware
from gateway.dialects import Dialect, chat, completions, embeddings, messages, responses
from gateway.endpoints.admin import admin_routes
from gateway.endpoints.documents import Documents
from gateway.endpoints.feedback import FeedbackEndpoint
from gateway.endpoints.models import HealthEndpoint, Models
from gateway.endpoints.openapi import OpenApi
from gateway.endpoints.route import count_tokens, route
from gateway.errors import error_body
from gateway.observability.metrics import Metrics
from gateway.observability.state_metrics import RELOAD_FAILED, StateMetrics
from gateway.parts import Parts
from gateway.request.line import Line
from gateway.ui import page_routes

_log = logging.getLogger("gateway")

RECORDING = 5.0
"""Seconds at most that the end waits for requests whose last byte is out and whose record is not yet written down."""

DIALECTS: Mapping[str, Dialect] = {
    "/v1/chat/completions": chat,
    "/v1/responses": responses,
    "/v1/messages": messages,
    "/v1/completions": completions,
    "/v1/embeddings": embeddings,
}


def create_app(open_parts: Callable[[], AbstractAsyncContextManager[Parts]]) -> Starlette:
    """The application. `open_parts` runs in the event loop that serves, as connection pools must."""

    @asynccontextmanager
    async def lifespan(app: _App) -> AsyncIterator[None]:
        async with open_parts() as parts:
            health = HealthEndpoint(parts.current)
            app.lines = _lines(parts)
            app.router.routes[:] = _routes(parts, health, app.lines)
            app.entrance = CrossOriginMiddleware(app.dispatch, parts.current, count=parts.metrics.record_refusal)
            _show_crashes(app, parts.metrics)
            health.ready = True
            try:
                yield
            finally:
                health.ready = False
                await app.settled()

    return _App(lifespan=lifespan, exception_handlers={HTTPException: _http_error, Exception: _bug})


class _App(Starlette):
    """Hands the hot paths straight to their lines, which answer for all their errors; the rest is for Starlette."""

    entrance: CrossOriginMiddleware
    lines: Mapping[str, Line] = {}
    under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self.entrance(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that the entrance has accepted."""
        if scope["method"] == "POST" and (line := self.lines.get(scope["path"])):
            self.under_way += 1
            try:
                await line(scope, receive, send)
            finally:
                self.under_way -= 1
        else:
            await super().__call__(scope, receive, send)

    async def settled(self) -> None:
        """Return once no line has a request: to the server one is over with its last byte, its record comes after."""
        with suppress(TimeoutError):
            async with asyncio.timeout(RECORDING):
                while self.under_way:  # noqa: ASYNC110  (once, at the end)
                    await asyncio.sleep(0.005)


def _lines(parts: Parts) -> dict[str, Line]:
    current, observers, tracing = parts.current, parts.observers, parts.tracing
    return {
        path: Line(current, dialect=dialect, admission=current.admission, observers=observers, tracing=tracing)
        for path, dialect in DIALECTS.items()
    }


def _routes(parts: Parts, health: HealthEndpoint, lines: Mapping[str, Line]) -> list[Route]:
    current = parts.current
    StateMetrics(current).register(parts.metrics, current.admission)
    failed = "1 while what is declared or promoted could not be taken over."
    parts.metrics.gauge(RELOAD_FAILED, failed, lambda: current.reload_error is not None, largest=True)
    models, documents = Models(current), Documents(current)
    return [
        *(Route(path, line, methods=["POST"]) for path, line in lines.items()),
        Route("/v1/models", guarded(models.list, current, scope=None)),
        Route("/v1/models/{model}", guarded(models.one, current, scope=None)),
        Route("/v1/route", route(current), methods=["POST"]),
        Route("/v1/messages/count_tokens", count_tokens(current), methods=["POST"]),
        Route("/v1/feedback", _feedback(parts), methods=["POST"]),
        Route("/v1/documents", documents.all, methods=["GET", "POST"]),
        Route("/v1/documents/search", documents.search, methods=["POST"]),
        Route("/v1/documents/{id:path}", documents.one, methods=["DELETE"]),
        Route("/openapi.json", OpenApi(current).endpoint),
        Route("/health/live", health.live),
        Route("/health/ready", health.ready_now),
        Route("/metrics", guarded(parts.metrics.endpoint, current, scope="admin")),
        *admin_routes(parts),
        *page_routes(),
    ]


def _show_crashes(app: Starlette, metrics: Metrics) -> None:
    """Crashes of each worker, as the parent process counts them; none where no parent runs this application."""
    crashes = getattr(app.state, "worker_crashes", dict)
    text = "Times that a worker process ended without being told to, since the gateway started."
    metrics.gauges("coe_worker_crashes", text, ("worker",), crashes, largest=True)


def _feedback(parts: Parts) -> FeedbackEndpoint:
    return FeedbackEndpoint(parts.current, log=parts.log, recent=parts.recent, writer=parts.feedback_writer)


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router itself refuses (404, 405)."""
    assert isinstance(error, HTTPException)
    code = "not_found" if error.status_code == 404 else "invalid_request"
    response = _refused(request, error.status_code, error.detail, kind="invalid_request_error", code=code)
    response.headers.update(error.headers or {})
    return response


async def _bug(request: Request, error: Exception) -> Response:
    """What no endpoint caught."""
    _log.error("an endpoint failed", exc_info=error)
    message = "internal error; the gateway's own log has the reason"
    return _refused(request, 500, message, kind="api_error", code="internal_error")


def _refused(request: Request, status: int, why: str, *, kind: str, code: str) -> Response:
    """In the shape that clients of the path know: Anthropic's or OpenAI's."""
    message = f"{request.method} {request.url.path}: {why}"
    anthropic = request.url.path.startswith("/v1/messages")
    body = messages.refusal(status, message) if anthropic else error_body(message, kind=kind, code=code)
    return Response(body, status_code=status, media_type="application/json")
