"""Answers of the Responses API that are stored for the caller's tenant: read and delete."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from coe import json_text
from coe.errors import InvalidRequest, ResponseNotFound
from gateway.endpoints.handler import caller_of, json_response
from gateway.parts import Parts
from gateway.request.stored_step import StoredStep


async def get(parts: Parts, request: Request) -> Response:
    """Read an earlier answer."""
    if request.query_params.get("stream") == "true":
        raise InvalidRequest("earlier answers are not streamed: leave stream out", param="stream")
    found = await _stored(parts).response(caller_of(request), request.path_params["id"])
    return json_response(json_text.dumps(found.response))


async def delete(parts: Parts, request: Request) -> Response:
    """Delete an earlier answer."""
    await _stored(parts).delete(caller_of(request), response_id := request.path_params["id"])
    return json_response({"id": response_id, "object": "response", "deleted": True})


def _stored(parts: Parts) -> StoredStep:
    if parts.stored is None:
        raise ResponseNotFound("no answers are stored here: stored_responses.store is none in experts.yaml", param="id")
    return parts.stored
