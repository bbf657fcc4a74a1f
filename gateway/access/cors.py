"""ASGI middleware in front of the application: refuses what web pages must not send, and adds CORS headers for allowed
ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from coe.errors import RequestError
from gateway.dialects import chat, messages
from gateway.errors import headers_of, respond, status_of
from gateway.serving_state import ServingState

EXPOSED_HEADERS = (
    "x-request-id",
    "x-coe-expert",
    "x-coe-category",
    "x-coe-confidence",
    "x-coe-reason",
    "x-coe-fallback-from",
    "x-coe-cause",
    "x-coe-router",
    "x-coe-attempts",
    "x-coe-overhead-ms",
    "x-coe-retrieval",
    "server-timing",
    "retry-after",
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
)
"""Response headers that scripts of allowed origins may read."""
ALLOWED_METHODS = ("GET", "POST", "DELETE")
PREFLIGHT_CACHE_SECONDS = 600
"""How long browsers cache the response to a preflight request."""


class CrossOriginMiddleware:
    """An ASGI application in front of `app`. It uses the policy of the current serving state, so a reload changes it.
    `count` is called with the error code of every refusal."""

    def __init__(self, app: ASGIApp, current: ServingState, *, count: Callable[[str], None]) -> None:
        self._app = app
        self._current = current
        self._count = count
        self._cors = _with_cors(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error, cross_origin = self._current.serving.access.browsers.check(scope)
        if error is not None:
            self._count(error.code)
            refuse = partial(_refuse, error)
            await (_with_cors(refuse) if cross_origin else refuse)(scope, receive, send)
        elif cross_origin:
            await self._cors(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _with_cors(app: ASGIApp) -> CORSMiddleware:
    """Adds the CORS headers for any origin: BrowserPolicy has decided before which requests get here. Cookies are not
    allowed, as the API has none."""
    return CORSMiddleware(
        app,
        allow_origin_regex=r"(?s).*",
        allow_methods=ALLOWED_METHODS,
        allow_headers=["*"],  # clients of OpenAI and Anthropic send headers of their own
        expose_headers=EXPOSED_HEADERS,
        allow_private_network=True,
        max_age=PREFLIGHT_CACHE_SECONDS,
    )


async def _refuse(error: RequestError, scope: Scope, _: Receive, send: Send) -> None:
    dialect = messages if scope["path"].startswith("/v1/messages") else chat
    headers = [(b"vary", b"Origin"), *headers_of(error)]
    await respond(send, status=status_of(error), body=dialect.error_body(error), headers=headers)
