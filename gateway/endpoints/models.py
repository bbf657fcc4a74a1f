"""`GET /v1/models`: the values that a client may send as `model`.

One form serves OpenAI's and Anthropic's clients, as each ignores the fields of the other.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from coe.core import ExpertRule
from coe.registry import AUTO
from coe.registry.permission import exclusion, permits_model, permitted_models
from gateway.dialects import error_body
from gateway.dialects.messages import refusal
from gateway.endpoints.handler import caller_of, json_response
from gateway.services import Services


async def list_models(services: Services, request: Request) -> Response:
    """`auto`, operating points, experts, recipes, and the aliases that are not patterns."""
    rule = caller_of(request).rule
    names = permitted_models(services.snapshot.registry, rule)
    page = {"has_more": False, "first_id": names[0], "last_id": names[-1]}
    return json_response({"object": "list", "data": [_model(services, name, rule) for name in names], **page})


async def get_model(services: Services, request: Request) -> Response:
    """One model. A name that an alias with `*` matches is one too."""
    name, registry, rule = request.path_params["model"], services.snapshot.registry, caller_of(request).rule
    if permits_model(registry, rule, name):
        return json_response(_model(services, name, rule))
    message = f"the model {name!r} does not exist here; known: {', '.join(permitted_models(registry, rule))}"
    if "anthropic-version" in request.headers:
        return json_response(refusal(404, message), status=404)
    body = error_body(message, kind="invalid_request_error", code="model_not_found", param="model")
    return json_response(body, status=404)


def _model(services: Services, name: str, rule: ExpertRule | None) -> dict[str, Any]:
    """A model, created at the last change of experts.yaml."""
    registry = services.snapshot.registry
    found = registry.models.resolve(name)
    assert found is not None
    shown = "automatic routing" if found.model == AUTO else found.model
    display_name = name if name in registry.model_names else f"{name} ({shown})"  # several names may mean one model
    if found.model == AUTO:  # routing selects an expert with enough context
        permitted = [arm for arm in registry.experts if rule is None or not exclusion(rule, arm)]
        context_length = max((arm.context_length for arm in permitted), default=0)
    else:
        context_length = registry.arm(found.model).context_length
    try:
        created = int(services.settings.config.stat().st_mtime)
    except OSError:
        created = 0
    return {
        "id": name,
        "object": "model",
        "type": "model",
        "created": created,
        "created_at": datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z"),
        "owned_by": "coe",
        "display_name": "Automatic routing" if name == AUTO else display_name,
        "root": found.model,
        "context_length": context_length,
    }
