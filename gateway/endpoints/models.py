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
from gateway.dialects import error_body
from gateway.dialects.messages import refusal
from gateway.endpoints.handler import caller_of, json_response
from gateway.services import Services


async def list_models(services: Services, request: Request) -> Response:
    """`auto`, operating points, experts, recipes, and the aliases that are not patterns."""
    registry, created = services.snapshot.registry, _created(services)
    rule = caller_of(request).rule
    names = permitted_models(registry, rule)
    models = [_model(name, registry, created, rule) for name in names]
    page = {"has_more": False, "first_id": names[0], "last_id": names[-1]}
    return json_response({"object": "list", "data": models, **page})


async def get_model(services: Services, request: Request) -> Response:
    """One model. A name that an alias with `*` matches is one too."""
    name, registry = request.path_params["model"], services.snapshot.registry
    rule = caller_of(request).rule
    if permits_model(registry, rule, name):
        return json_response(_model(name, registry, _created(services), rule))
    message = f"the model {name!r} does not exist here; known: {', '.join(permitted_models(registry, rule))}"
    if "anthropic-version" in request.headers:
        return json_response(refusal(404, message), status=404)
    body = error_body(message, kind="invalid_request_error", code="model_not_found", param="model")
    return json_response(body, status=404)


def _created(services: Services) -> int:
    """Time of the last change of experts.yaml, in Unix seconds; 0 if unknown."""
    try:
        return int(services.settings.config.stat().st_mtime)
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
