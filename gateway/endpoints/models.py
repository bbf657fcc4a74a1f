"""`GET /v1/models`: what a client may write as `model`.

`/health/live`: the process runs. `/health/ready`: it takes work.
"""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from coe.registry import AUTO
from gateway.errors import error_body
from gateway.serving_state import ServingState


class Models:
    """`auto` and the declared experts, in OpenAI's shape."""

    def __init__(self, current: ServingState) -> None:
        self._current = current

    @property
    def _names(self) -> tuple[str, ...]:
        return (AUTO, *self._current.serving.registry.expert_names)

    async def list(self, _: Request) -> Response:
        return _json({"object": "list", "data": [_model(name) for name in self._names]})

    async def one(self, request: Request) -> Response:
        name = request.path_params["model"]
        if name in self._names:
            return _json(_model(name))
        message = f"the model {name!r} does not exist here; known: {', '.join(self._names)}"
        body = error_body(message, kind="invalid_request_error", code="model_not_found", param="model")
        return Response(body, status_code=404, media_type="application/json")


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "coe"}


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


class HealthEndpoint:
    """Ready from the end of start-up until the process begins to leave. A failed reload does not change that: the last
    good state serves on, and `reload_error` says that it is not what is declared."""

    def __init__(self, current: ServingState) -> None:
        self._current = current
        self.ready = False

    async def live(self, _: Request) -> Response:
        return Response(b'{"status":"live"}', media_type="application/json")

    async def ready_now(self, _: Request) -> Response:
        current = self._current
        ready = self.ready and not current.leaving
        body = {
            "status": "ready" if ready else "not ready",
            "router": current.serving.composition.router.version,
            "config": current.serving.registry.digest,
            "reload_error": current.reload_error is not None,
        }
        return Response(orjson.dumps(body), status_code=200 if ready else 503, media_type="application/json")
