"""The ASGI application: routes, and what must be open while they are served."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.admission import Admission
from gateway.current import Current
from gateway.dialects import chat
from gateway.errors import error_body
from gateway.health import Health
from gateway.line import Line, Observer
from gateway.metrics import Metrics
from gateway.models import Models
from gateway.route import RouteEndpoint


@dataclass(frozen=True, slots=True)
class Parts:
    """What an app is made of, opened and ready to use."""

    current: Current
    observers: Sequence[Observer]
    metrics: Metrics


def create_app(open_parts: Callable[[], AbstractAsyncContextManager[Parts]]) -> Starlette:
    """The application. `open_parts` runs in the event loop that serves, as connection pools must."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with open_parts() as parts:
            health = Health(parts.current)
            app.router.routes[:] = _routes(parts, health)
            health.ready = True
            try:
                yield
            finally:
                health.ready = False

    return Starlette(lifespan=lifespan, exception_handlers={HTTPException: _http_error, Exception: _bug})


def _routes(parts: Parts, health: Health) -> list[Route]:
    current = parts.current
    admission = Admission(permits=current.serving.registry.limits.concurrent_requests)
    parts.metrics.gauge("coe_requests_in_flight", "Chat requests being worked on.", lambda: admission.in_use)
    models = Models(current)
    return [
        Route(
            "/v1/chat/completions",
            Line(current, dialect=chat, admission=admission, observers=parts.observers),
            methods=["POST"],
        ),
        Route("/v1/models", models.list),
        Route("/v1/models/{model}", models.one),
        Route("/v1/route", RouteEndpoint(current), methods=["POST"]),
        Route("/health/live", health.live),
        Route("/health/ready", health.ready_now),
        Route("/metrics", parts.metrics.endpoint),
    ]


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router itself refuses (404, 405), in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    body = error_body(
        message, kind="invalid_request_error", code="not_found" if error.status_code == 404 else "invalid_request"
    )
    return Response(body, status_code=error.status_code, headers=error.headers, media_type="application/json")


async def _bug(request: Request, _: Exception) -> Response:
    """What no endpoint caught; the server's log has the trace."""
    message = f"{request.method} {request.url.path}: internal error; the gateway's own log has the reason"
    return Response(
        error_body(message, kind="api_error", code="internal_error"), status_code=500, media_type="application/json"
    )
