"""JSON responses, and query strings as exact models."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway.request.body import Body, validated

JSON, EVENTS = "application/json", "text/event-stream"


def json_response(content: Any, *, status: int = 200) -> Response:
    """A response with `content` as its JSON body; bytes are taken as JSON already."""
    body = content if isinstance(content, bytes) else orjson.dumps(content)
    return Response(body, status_code=status, media_type=JSON)


def query_of(request: Request, model: type[Body]) -> Body:
    """The query string as a value of `model`. Raises InvalidRequest, which names the parameter."""
    return validated(model, orjson.dumps(dict(request.query_params)))
