"""`GET /v1/models`: the values that a client may send as `model`.

One form serves OpenAI's and Anthropic's clients, as each ignores the fields of the other.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from coe.core import ExpertRule
from coe.registry import AUTO, Registry
from coe.routing.eligibility import exclusion, permits_model, permitted_models
from gateway.dialects.messages import refusal
from gateway.endpoints.operation import (
    BOOLEAN,
    COUNT,
    TEXT,
    TEXT_OR_NULL,
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

_LIST_PATHS = ("/openai/v1/models", "/openai/models")
_CREATED = "Time of the last change of experts.yaml, in Unix seconds; 0 if unknown."
SCHEMAS: Schema = {
    "Model": object_schema(
        {
            "id": TEXT,
            "object": {"const": "model"},
            "type": {"const": "model"},
            "created": COUNT | {"description": _CREATED},
            "created_at": TEXT
            | {"format": "date-time", "description": "The same time, as Anthropic's clients read it."},
            "owned_by": TEXT,
            "display_name": TEXT,
            "root": TEXT | {"description": f"The model that an alias stands for; `{AUTO}` for an operating point."},
            "context_length": COUNT | {"description": "Tokens of prompt and answer; of a routed model the largest."},
        }
    ),
    "Models": list_schema(ref("Model")),
}
SCHEMAS["Models"]["properties"] |= {"has_more": BOOLEAN, "first_id": TEXT_OR_NULL, "last_id": TEXT_OR_NULL}


class Models:
    """`/v1/models`: `auto`, operating points, experts, recipes, and the aliases that are not patterns."""

    def __init__(self, parts: Parts) -> None:
        self._current, self._declaration = parts.current, parts.settings.config

    @operation("GET /v1/models", "listModels", "The models.", ref("Models"), scope="any_key", also=_LIST_PATHS)
    async def list(self, request: Request) -> Response:
        """List the values of `model` that the API key may send."""
        registry, created = self._current.serving.registry, self._created()
        rule = self._rule(request)
        names = permitted_models(registry, rule)
        models = [_model(name, registry, created, rule) for name in names]
        page = {"has_more": False, "first_id": names[0], "last_id": names[-1]}
        return json_response({"object": "list", "data": models, **page})

    @operation(
        "GET /v1/models/{model:path}",
        "getModel",
        "The model.",
        ref("Model"),
        scope="any_key",
        problems=problems(404),
        also=tuple(f"{path}/{{model:path}}" for path in _LIST_PATHS),
    )
    async def get(self, request: Request) -> Response:
        """Read one model. A name that an alias with `*` matches is one too."""
        name, registry = request.path_params["model"], self._current.serving.registry
        rule = self._rule(request)
        if permits_model(registry, rule, name):
            return json_response(_model(name, registry, self._created(), rule))
        message = f"the model {name!r} does not exist here; known: {', '.join(permitted_models(registry, rule))}"
        if "anthropic-version" in request.headers:
            return json_response(refusal(404, message), status=404)
        body = error_body(message, kind="invalid_request_error", code="model_not_found", param="model")
        return json_response(body, status=404)

    def _rule(self, request: Request) -> ExpertRule | None:
        return self._current.serving.access.identify(request.scope["headers"], None).rule

    def _created(self) -> int:
        try:
            return int(self._declaration.stat().st_mtime)
        except OSError:
            return 0


def _model(name: str, registry: Registry, created: int, rule: ExpertRule | None) -> dict[str, Any]:
    found = registry.models.resolve(name)
    assert found is not None
    return {
        "id": name,
        "object": "model",
        "type": "model",
        "created": created,
        "created_at": datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z"),
        "owned_by": "coe",
        "display_name": _display_name(name, found.model, registry),
        "root": found.model,
        "context_length": _context_length(found.model, registry, rule),
    }


def _display_name(name: str, model: str, registry: Registry) -> str:
    """Return the display name. An alias is shown with its target, since several aliases may have the same target."""
    if name == AUTO:
        return "Automatic routing"
    if name in registry.model_names:
        return name
    return f"{name} (automatic routing)" if model == AUTO else f"{name} ({model})"


def _context_length(model: str, registry: Registry, rule: ExpertRule | None) -> int:
    """Tokens that fit. Routing selects an expert with enough context, so the largest permitted one counts."""
    if model != AUTO:
        return registry.arm(model).context_length
    permitted = [arm for arm in registry.experts if rule is None or not exclusion(rule, arm)]
    return max((arm.context_length for arm in permitted), default=0)
