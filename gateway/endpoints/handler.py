"""Authorization and errors of endpoints, and their bodies and queries as values."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

import orjson
from starlette.requests import Request
from starlette.responses import Response

from coe.core import Scope
from coe.errors import RequestError
from gateway.access.access import Caller
from gateway.dialects import body_of, headers_of
from gateway.request.body import (
    BODY_TIMEOUT,
    Body,
    ClientLeftError,
    body_too_slow,
    read_head,
    read_json_body,
    validated,
)
from gateway.services import Services

JSON = "application/json"
NO_STORE = {"cache-control": "no-store"}
"""Headers of a response that shows a secret."""

Handler = Callable[[Request], Awaitable[Response]]
Authorization = Scope | Literal["public", "any_key"]
"""The scope that a key needs; `any_key` accepts every key, and `public` needs none."""


def guarded(handler: Handler, services: Services, needs: Authorization) -> Handler:
    """Wraps `handler` for callers whose key has the scope; others get 401 or 403. A RequestError that it raises becomes
    the response."""

    async def answer(request: Request) -> Response:
        try:
            if needs != "public":
                scope = None if needs == "any_key" else needs
                request.scope["caller"] = services.snapshot.access.identify(request.scope["headers"], scope)
            return await handler(request)
        except ClientLeftError:
            return Response(status_code=400)
        except RequestError as error:
            response = Response(body_of(error), status_code=error.status, media_type=JSON)
            response.raw_headers += headers_of(error)
            return response

    return answer


def caller_of(request: Request) -> Caller:
    """The caller that the guard has identified."""
    caller: Caller = request.scope["caller"]
    return caller


def json_response(content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response with `content` as its JSON body; bytes are taken as JSON already."""
    body = content if isinstance(content, bytes) else orjson.dumps(content)
    return Response(body, status_code=status, headers=headers, media_type=JSON)


def list_response(data: Any) -> Response:
    """A list in OpenAI's form."""
    return json_response({"object": "list", "data": data})


def query_of(request: Request, model: type[Body]) -> Body:
    """The query string as a value of `model`. Raises InvalidRequest, which names the parameter."""
    return validated(model, orjson.dumps(dict(request.query_params)))


async def json_of(request: Request, model: type[Body], *, limit: int, seconds: float = BODY_TIMEOUT) -> Body:
    """The body, at most `limit` bytes within `seconds`, as a value of `model`. Raises InvalidRequest, BodyTooSlow, or
    ClientLeftError."""
    try:
        async with asyncio.timeout(seconds):
            body = await read_json_body(read_head(request.scope), request.receive, limit=limit)
    except TimeoutError:
        raise body_too_slow(seconds) from None
    return validated(model, body)
