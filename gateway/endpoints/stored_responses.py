"""`GET` and `DELETE /v1/responses/{id}`: answers of the Responses API that are stored for the caller's tenant."""

from __future__ import annotations

import orjson
from starlette.requests import Request
from starlette.responses import Response

from coe.errors import InvalidRequest, ResponseNotFound
from gateway.endpoints.operation import BOOLEAN, TEXT, Schema, json_response, object_schema, operation, problems, ref
from gateway.parts import Parts
from gateway.request.stored_step import StoredStep
from gateway.stored_responses.conversation import dumps

_PROBLEMS = problems(_404="No such answer is stored.", _503="The store does not reply.")
_PATH = "/v1/responses/{id}"
_ALSO = ("/openai/v1/responses/{id}", "/openai/responses/{id}")


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
        return json_response(dumps(found.response))

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

    def _stored(self) -> StoredStep:
        if self._step is None:
            message = "no answers are stored here: stored_responses.store is none in experts.yaml"
            raise ResponseNotFound(message, param="id")
        return self._step


SCHEMAS: Schema = {"ResponseDeleted": object_schema({"id": TEXT, "object": TEXT, "deleted": BOOLEAN})}
