"""`/v1/map`: the assignment in service with the scores it was solved from, and plans under other budgets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from coe.artifacts.kinds import ASSIGNMENT
from coe.artifacts.store import ArtifactStore, Promotion
from coe.errors import ArtifactError, InvalidRequest, NothingMeasured
from coe.planning.grid import align, select
from coe.planning.plan import Plan
from coe.planning.problem import USE_OF_ROW
from coe.planning.solver import planned_quality, planned_use
from gateway.endpoints.handler import json_of, json_response
from gateway.request.body import RequestModel
from gateway.services import Services
from gateway.snapshot import Snapshot

MAX_BODY_BYTES = 4 * 1024
SOLVE_SECONDS = 30.0
"""Time limit of `coe solve`, which runs in a process of its own."""
_Limit = Annotated[float, Field(gt=0, le=1e15, allow_inf_nan=False)]


class BudgetRequest(RequestModel):
    """The budget to solve under; a row that is missing or null sets no limit."""

    memory_gb: _Limit | None = None
    """Memory of all hosted experts together."""
    mean_active_b: _Limit | None = None
    """Mean active parameters per request, in billions."""
    mean_cost: _Limit | None = None
    """Mean cost per thousand requests, in US dollars."""
    mean_latency_ms: _Limit | None = None
    max_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Largest share of the requests that one expert may get."""


class Map:
    """The assignment that this worker serves, and the stored data of its plan, read once per version."""

    def __init__(self, services: Services) -> None:
        self._services, self._solver = services, services.solver
        self._store = ArtifactStore(services.settings.artifacts, ASSIGNMENT)
        self._stored: tuple[str, Plan] | None = None

    async def get(self, _: Request) -> Response:
        """The assignment of categories to experts, with the scores behind it."""
        snapshot = self._services.snapshot
        version = snapshot.versions.get(ASSIGNMENT)
        stored, move = await asyncio.to_thread(self._read, version)
        served = await asyncio.to_thread(_served_map, snapshot, stored)
        body = {"object": "map", "version": version, "promotion": move and asdict(move), **served}
        return json_response(body)

    async def solve(self, request: Request) -> Response:
        """Solve a plan under another budget; nothing is promoted."""
        budget = await json_of(request, BudgetRequest, limit=MAX_BODY_BYTES)
        version = self._services.snapshot.versions.get(ASSIGNMENT)
        if version is None or (await asyncio.to_thread(self._read, version))[0] is None:
            raise NothingMeasured("no scores are stored for this plan: run `coe score`, then `coe plan`")
        line = orjson.dumps(budget.model_dump()) + b"\n"
        answer = await self._solver.run("solve", version, seconds=SOLVE_SECONDS, needs=("scipy",), sent=line)
        if "error" in answer:
            raise InvalidRequest(answer["error"], param="budget", code="budget_impossible")
        return json_response({"object": "plan", "version": version, **answer["plan"]})

    def _read(self, version: str | None) -> tuple[Plan | None, Promotion | None]:
        """The plan, None without one, and its promotion."""
        if version is None:
            return None, None
        try:
            if self._stored is None or self._stored[0] != version:
                self._stored = version, Plan.read(self._store.published(version).folder)
            move = self._store.last_move()
        except ArtifactError:  # damaged since it was loaded: the loaded state stays in service
            return None, None
        return self._stored[1], move if move and move.version == version else None


def _served_map(snapshot: Snapshot, plan: Plan | None) -> dict[str, Any]:
    """Categories and experts in the order of experts.yaml, followed by those in service that it no longer declares."""
    assignment = snapshot.composition.assignment
    categories = _ordered(assignment.categories, snapshot.registry.category_names)
    experts = _ordered(assignment.experts, snapshot.registry.expert_names)
    names = (assignment.categories, assignment.experts), (categories, experts)
    quality, price = (align(values, *names) for values in (assignment.quality, assignment.price))
    weights = _weights(plan, categories)
    chosen = zip(assignment.categories, assignment.choice, assignment.runners_up, strict=True)
    return {
        "categories": categories,
        "experts": experts,
        "general": assignment.general_expert,
        "pinned": dict(snapshot.registry.assignment),
        "assignment": [
            {"category": category, "expert": expert, "runner_up": second, "margin": margin}
            for category, expert, (second, margin) in sorted(chosen, key=lambda row: categories.index(row[0]))
        ],
        "quality_lower_bound": _cells(quality),
        "hosted": [name for name in experts if name in assignment.hosted],
        "prices": dict(zip(experts, (weights @ price).tolist(), strict=True)),
        "price_by_category": price.tolist(),
        "duals": dict(assignment.duals),
        "consequences": [asdict(one) for one in snapshot.consequences],
        "measured": None if plan is None else _measured(plan, categories, experts),
    }


def _weights(plan: Plan | None, categories: Sequence[str]) -> NDArray[np.float64]:
    """The shares of the categories in the plan; equal ones where they are unknown."""
    known = {} if plan is None else dict(zip(plan.problem.categories, plan.problem.weights.tolist(), strict=True))
    weights = np.array([known.get(name, 0.0) for name in categories])
    return weights / weights.sum() if weights.any() else np.full(len(categories), 1 / len(categories))


def _measured(plan: Plan, categories: Sequence[str], experts: Sequence[str]) -> dict[str, Any]:
    """The scores that the plan was solved from, null where it has none. Uses are means over the plan's categories, and
    by category; unknown ones are null."""
    planned = plan.problem
    known, names = (planned.categories, planned.experts), (categories, experts)
    tables = {
        "mean": plan.table.mean,
        "count": plan.table.count,
        "estimate": plan.estimate,
        "error": plan.table.error(pseudo_count=plan.pseudo_count),
        "quality": np.where(np.isfinite(planned.quality), planned.quality, np.nan),
    }
    uses = {name: planned.use(row) for row, name in USE_OF_ROW.items() if row != "memory_gb"}
    means = {"memory_gb": planned.use("memory_gb")} | {name: planned.weights @ use for name, use in uses.items()}
    return {
        "source": plan.source,
        "deviations": plan.deviations,
        "budget": dict(planned.budget),
        "value_of_expert": dict(plan.value_of_expert),
        "weights": [dict(zip(known[0], planned.weights.tolist(), strict=True)).get(name, 0.0) for name in categories],
        "uses": {name: _cells(select(use, known[1], experts)) for name, use in means.items()},
        "uses_by_category": {name: _cells(align(use, known, names)) for name, use in uses.items()},
        "planned": {
            "quality": planned_quality(planned, plan.assignment),
            "used": planned_use(planned, plan.assignment),
        },
    } | {name: _cells(align(table, known, names)) for name, table in tables.items()}


def _cells(values: NDArray[np.float64]) -> Any:
    """Nested lists, null where a value is not finite."""
    found = values.astype(object)
    found[~np.isfinite(values)] = None
    return found.tolist()


def _ordered(names: Sequence[str], declared: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=lambda name: declared.index(name) if name in declared else len(declared)))
