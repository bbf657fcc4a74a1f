"""`/v1/experts`: each expert with its state; `/v1/recipes`.

`GET /v1/map`: the assignment in service with the scores it was solved from.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from coe.artifacts.manifest import ASSIGNMENT
from coe.artifacts.store import ArtifactStore
from coe.errors import ArtifactError
from coe.experts.replicas import Incidents
from coe.planning.assignment import Assignment
from coe.planning.plan import Plan
from coe.planning.problem import USE_OF_ROW
from coe.planning.score_table import align, select
from coe.registry import ExpertSpec
from gateway.endpoints.handler import json_response, list_response
from gateway.services import Services
from gateway.snapshot import Snapshot


async def read_map(services: Services, _: Request) -> Response:
    """The assignment of categories to experts, with the scores behind it."""
    return json_response(await asyncio.to_thread(_map_of, services))


def _map_of(services: Services) -> dict[str, Any]:
    snapshot = services.snapshot
    registry, assignment, version = (
        snapshot.registry,
        snapshot.composition.assignment,
        snapshot.versions.get(ASSIGNMENT),
    )
    plan = promotion = None
    if version is not None:
        store = ArtifactStore(services.settings.artifacts, ASSIGNMENT)
        try:
            plan, promotion = Plan.read(store.published(version).folder), store.last_move()
        except ArtifactError:  # damaged since it was loaded: the loaded state stays in service
            plan = promotion = None
    weights = np.ones(len(assignment.categories))
    if plan is not None:
        weights = select(plan.problem.weights, plan.problem.categories, assignment.categories, missing=0.0)
    weights = weights / (weights.sum() or 1.0)
    rows = zip(assignment.categories, assignment.choice, assignment.runners_up, strict=True)
    return {
        "object": "map",
        "version": version,
        "promotion": asdict(promotion) if promotion is not None and promotion.version == version else None,
        "categories": assignment.categories,
        "experts": assignment.experts,
        "pinned": dict(registry.assignment),
        "assignment": [
            {"category": category, "expert": expert, "runner_up": second, "margin": margin}
            for category, expert, (second, margin) in rows
        ],
        "quality_planned": _cells(assignment.quality),
        "hosted": [name for name in assignment.experts if name in assignment.hosted],
        "prices": dict(zip(assignment.experts, (weights @ assignment.price).tolist(), strict=True)),
        "consequences": [asdict(one) for one in snapshot.consequences],
        "measured": None if plan is None else _measured(plan, assignment, weights),
    }


def _measured(plan: Plan, assignment: Assignment, weights: NDArray[np.float64]) -> dict[str, Any]:
    """The scores that the plan was solved from, null where it has none. Uses are the planned ones: means over the
    plan's categories, and by category; unknown ones are null."""
    problem, names = plan.problem, (assignment.categories, assignment.experts)
    by_category = {use: problem.use(row) for row, use in USE_OF_ROW.items()}
    memory = select(by_category.pop("memory_gb"), problem.experts, assignment.experts)
    uses = {name: align(use, (problem.categories, problem.experts), names) for name, use in by_category.items()}
    tables = {
        "mean": plan.table.mean,
        "count": plan.table.count,
        "estimate": plan.estimate,
        "error": plan.error,
    }
    known = plan.problem.categories, plan.problem.experts
    return {
        "source": plan.source,
        "value_of_expert": dict(plan.value_of_expert),
        "weights": weights.tolist(),
        "uses": {"memory_gb": _cells(memory)} | {name: _cells(weights @ use) for name, use in uses.items()},
        "uses_by_category": {name: _cells(use) for name, use in uses.items()},
    } | {name: _cells(align(table, known, names)) for name, table in tables.items()}


def _cells(values: NDArray[np.float64]) -> Any:
    """Nested lists, null where a value is not finite."""
    cells = values.astype(object)
    cells[~np.isfinite(values)] = None
    return cells.tolist()


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
                "state": replica.breaker.state,
                "in_flight": replica.in_flight,
                "waiting": replica.queue_length,
            }
            for replica in getattr(expert, "replicas", ())
        ],
        "assigned_categories": sorted(assigned, key=lambda row: -(row["margin"] or 0.0)),
    }
