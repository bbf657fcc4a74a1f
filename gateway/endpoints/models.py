"""`GET /v1/models`: the values that a client may send as `model`."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from coe.registry import AUTO
from gateway.endpoints.operation import (
    TEXT,
    Schema,
    json_response,
    list_schema,
    object_schema,
    operation,
    problems,
    ref,
)
from gateway.errors import error_body
from gateway.parts import Parts

SCHEMAS: Schema = {
    "Model": object_schema(
        {"id": TEXT, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": TEXT}
    ),
    "Models": list_schema(ref("Model")),
}


class Models:
    """`auto`, the declared experts and recipes, in OpenAI's form."""

    def __init__(self, parts: Parts) -> None:
        self._current = parts.current

    @property
    def _names(self) -> tuple[str, ...]:
        return (AUTO, *self._current.serving.registry.model_names)

    @operation("GET /v1/models", "listModels", "The models.", ref("Models"), scope="any_key")
    async def list(self, _: Request) -> Response:
        """List the values of `model`."""
        return json_response({"object": "list", "data": [_model(name) for name in self._names]})

    @operation(
        "GET /v1/models/{model}", "getModel", "The model.", ref("Model"), scope="any_key", problems=problems(404)
    )
    async def get(self, request: Request) -> Response:
        """Read one model."""
        name = request.path_params["model"]
        if name in self._names:
            return json_response(_model(name))
        message = f"the model {name!r} does not exist here; known: {', '.join(self._names)}"
        body = error_body(message, kind="invalid_request_error", code="model_not_found", param="model")
        return json_response(body, status=404)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "coe"}
