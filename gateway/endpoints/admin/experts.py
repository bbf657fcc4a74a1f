"""`/v1/experts`: each expert with its state; `/v1/recipes`."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from coe.experts.outcomes import Incidents
from coe.registry import ExpertSpec
from gateway.endpoints.handler import list_response
from gateway.services import Services
from gateway.snapshot import Snapshot

_DECLARED_FIELDS = (
    *("model", "runtime", "adapter", "context_length", "parameters", "active_parameters_b", "memory_gb", "latency_ms"),
    "concurrent_requests",
)


async def list_experts(services: Services, _: Request) -> Response:
    """The experts with their state as this worker sees it, which is read at each request, so that a reload shows at
    once. `/metrics` has the counts of all workers."""
    snapshot = services.snapshot
    return list_response([_declared(spec) | _state(snapshot, spec.name) for spec in snapshot.registry.experts])


async def list_recipes(services: Services, _: Request) -> Response:
    """The recipes, declared or proposed by the plan, with steps."""
    return list_response(
        [
            {"object": "recipe", "id": one.name, "steps": one.steps}
            for one in services.snapshot.registry.declared_recipes
        ]
    )


def _declared(spec: ExpertSpec) -> dict[str, Any]:
    """The declaration of an expert without keys, addresses and the text of the system prompt."""
    return {name: getattr(spec, name) for name in _DECLARED_FIELDS} | {
        "id": spec.name,
        "object": "expert",
        "apis": sorted(spec.supported_apis),
        "capabilities": sorted(spec.capabilities),
        "languages": None if spec.languages is None else sorted(spec.languages),
        "prices": {"input": spec.prices.input, "output": spec.prices.output, "cached_input": spec.prices.cached},
        "system_prompt": spec.system_prompt is not None,
    }


def _state(snapshot: Snapshot, name: str) -> dict[str, Any]:
    expert, assignment = snapshot.composition.experts[name], snapshot.composition.assignment
    rows = zip(assignment.categories, assignment.choice, assignment.runners_up, strict=True)
    assigned = [
        {"category": category, "runner_up": second, "margin": margin}
        for category, choice, (second, margin) in rows
        if choice == name
    ]
    incidents: Incidents | None = getattr(expert, "incidents", None)
    failing = () if incidents is None else incidents.active.values()
    health = expert.health
    return {
        "up": health.up,
        "load": health.load,
        "failing": [{"cause": one.cause, "failures": one.failures} for one in failing],  # as this process sees them
        "replicas": [
            {
                "address": replica.address,
                "state": replica.state,
                "in_flight": replica.in_flight,
                "waiting": replica.queue_length,
            }
            for replica in getattr(expert, "replicas", ())
        ],
        "assigned_categories": sorted(assigned, key=lambda row: -(row["margin"] or 0.0)),
    }
