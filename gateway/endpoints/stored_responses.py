"""Answers of the Responses API that are stored for the caller's tenant: read, delete, list their input items."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from coe import json_text
from coe.errors import InvalidRequest, ResponseNotFound
from gateway.endpoints.handler import caller_of, json_response, query_of
from gateway.parts import Parts
from gateway.request.stored_step import StoredStep
from gateway.stored_responses.conversation import MAX_ID_CHARACTERS


class InputPage(BaseModel):
    """A page of input items. Other parameters of OpenAI's API are accepted and change nothing."""

    model_config = ConfigDict(frozen=True)
    after: Annotated[str, Field(max_length=2 * MAX_ID_CHARACTERS)] = ""
    """The last id of the previous page."""
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"


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


async def input_items(parts: Parts, request: Request) -> Response:
    """List the input items of the request that an earlier answer replied to, without the conversation before it."""
    page = query_of(request, InputPage)
    items = (await _stored(parts).response(caller_of(request), request.path_params["id"])).input_items
    if page.order == "desc":
        items.reverse()
    ids = [item["id"] for item in items]
    if page.after and page.after not in ids:
        raise InvalidRequest(f"the answer has no input item {page.after!r}: send an id of its list", param="after")
    start = ids.index(page.after) + 1 if page.after else 0
    data = items[start : start + page.limit]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    more = start + page.limit < len(items)
    return json_response(
        json_text.dumps({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more})
    )


def _stored(parts: Parts) -> StoredStep:
    if parts.stored is None:
        raise ResponseNotFound("no answers are stored here: stored_responses.store is none in experts.yaml", param="id")
    return parts.stored
