"""Answers of the Responses API that are stored for the caller's tenant: read, delete, list their input items."""

from __future__ import annotations

from typing import Annotated, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from coe import json_text
from coe.errors import InvalidRequest, ResponseNotFound
from gateway.endpoints.operation import (
    BOOLEAN,
    OBJECTS,
    TEXT,
    TEXT_OR_NULL,
    Schema,
    json_response,
    object_schema,
    operation,
    problems,
    query_of,
    ref,
)
from gateway.parts import Parts
from gateway.request.stored_step import StoredStep
from gateway.stored_responses.conversation import MAX_ID_CHARACTERS

_PROBLEMS = problems(_404="No such answer is stored.", _503="The store does not reply.")
_PATH = "/v1/responses/{id}"
_ALSO = ("/openai/v1/responses/{id}", "/openai/responses/{id}")


class InputPage(BaseModel):
    """A page of input items. Other parameters of OpenAI's API are accepted and change nothing."""

    model_config = ConfigDict(frozen=True)
    after: Annotated[str, Field(max_length=2 * MAX_ID_CHARACTERS)] = ""
    """The last id of the previous page."""
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"


class StoredResponses:
    """The stored answers of a gateway."""

    def __init__(self, parts: Parts) -> None:
        self._current = parts.current
        self._step = parts.stored

    @operation(
        f"GET {_PATH}",
        "getResponse",
        "The answer.",
        ref("ResponsesResponse"),
        scope="chat",
        problems=_PROBLEMS,
        also=_ALSO,
    )
    async def get(self, request: Request) -> Response:
        """Read an earlier answer."""
        if request.query_params.get("stream") == "true":
            raise InvalidRequest("earlier answers are not streamed: leave stream out", param="stream")
        caller = self._current.serving.access.identify(request.scope["headers"], "chat")
        found = await self._stored().response(caller, request.path_params["id"])
        return json_response(json_text.dumps(found.response))

    @operation(
        f"DELETE {_PATH}",
        "deleteResponse",
        "It is deleted.",
        ref("ResponseDeleted"),
        scope="chat",
        problems=_PROBLEMS,
        also=_ALSO,
    )
    async def delete(self, request: Request) -> Response:
        """Delete an earlier answer."""
        caller = self._current.serving.access.identify(request.scope["headers"], "chat")
        await self._stored().delete(caller, response_id := request.path_params["id"])
        return json_response(orjson.dumps({"id": response_id, "object": "response", "deleted": True}))

    @operation(
        f"GET {_PATH}/input_items",
        "listInputItems",
        "The items, the last one first unless `order` is `asc`.",
        ref("InputItems"),
        scope="chat",
        query=InputPage,
        problems=_PROBLEMS,
        also=tuple(f"{path}/input_items" for path in _ALSO),
    )
    async def input_items(self, request: Request) -> Response:
        """List the input items of the request that an earlier answer replied to, without the conversation before it."""
        caller = self._current.serving.access.identify(request.scope["headers"], "chat")
        page = query_of(request, InputPage)
        items = (await self._stored().response(caller, request.path_params["id"])).input_items
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

    def _stored(self) -> StoredStep:
        if self._step is None:
            message = "no answers are stored here: stored_responses.store is none in experts.yaml"
            raise ResponseNotFound(message, param="id")
        return self._step


_PAGE = {"object": {"const": "list"}, "data": OBJECTS, "has_more": BOOLEAN}
SCHEMAS: Schema = {
    "ResponseDeleted": object_schema({"id": TEXT, "object": TEXT, "deleted": BOOLEAN}),
    "InputItems": object_schema({**_PAGE, "first_id": TEXT_OR_NULL, "last_id": TEXT_OR_NULL}),
}
