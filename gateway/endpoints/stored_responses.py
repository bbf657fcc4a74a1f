"""Answers of the Responses API that are stored for the caller's tenant: read and delete."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from coe import json_text
from coe.errors import InvalidRequest, ResponseNotFound
from gateway.endpoints.handler import caller_of, json_response
from gateway.request.stored_step import StoredStep
from gateway.services import Services


async def get(services: Services, request: Request) -> Response:
    """Read an earlier answer."""
    if request.query_params.get("stream") == "true":
        raise InvalidRequest("earlier answers are not streamed: leave stream out", param="stream")
    found = await _stored(services).response(caller_of(request), request.path_params["id"])
    return json_response(json_text.dumps(found))


async def delete(services: Services, request: Request) -> Response:
    """Delete an earlier answer."""
    await _stored(services).delete(caller_of(request), response_id := request.path_params["id"])
    return json_response({"id": response_id, "object": "response", "deleted": True})


def _stored(services: Services) -> StoredStep:
    if services.stored is None:
        raise ResponseNotFound("no answers are stored here: stored_responses.store is none in experts.yaml", param="id")
    return services.stored
