"""`/v1/map`: the assignment in service with the scores it was solved from, and plans under other budgets."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from coe.artifacts.kinds import ASSIGNMENT
from coe.artifacts.store import ArtifactStore, Promotion
from coe.errors import ArtifactError, DataError, InvalidRequest, NothingMeasured
from coe.planning import (
    Assignment,
    PublishedPlan,
    common_part,
    current_problem,
    planned_quality,
    planned_use,
    read_plan_file,
    read_published,
)
from coe.planning.problem import USE_OF_ROW
from coe.registry import Registry
from gateway.endpoints.handler import json_of, json_response
from gateway.request.body import RequestModel
from gateway.services import Services
from gateway.snapshot import Snapshot

MAX_BODY_BYTES = 4 * 1024
SOLVE_SECONDS = 30.0
"""Time limit of `coe solve`, which runs in a process of its own."""
_MATRICES = ("mean", "count", "estimate", "error", "quality")
_UNCHANGED = ("source", "deviations", "budget", "value_of_expert")
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
        self._stored: tuple[str, _StoredPlan | None] = ("", None)

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
        stored, _ = await asyncio.to_thread(self._read, version)
        if version is None or stored is None:
            raise NothingMeasured("no scores are stored for this plan: run `coe score`, then `coe plan`")
        line = orjson.dumps(budget.model_dump()) + b"\n"
        answer = await self._solver.run("solve", version, seconds=SOLVE_SECONDS, needs=("scipy",), sent=line)
        if "error" in answer:
            raise InvalidRequest(answer["error"], param="budget", code="budget_impossible")
        return json_response({"object": "plan", "version": version, **answer["plan"]})

    def _read(self, version: str | None) -> tuple[_StoredPlan | None, Promotion | None]:
        """The data that the plan was solved from, None where it is not stored, and the promotion of the plan."""
        if version is None:
            return None, None
        try:
            if self._stored[0] != version:
                self._stored = version, _stored_plan(self._store.published(version).folder, version)
            move = self._store.last_move()
        except ArtifactError:  # damaged since it was loaded: the loaded state stays in service
            return None, None
        return self._stored[1], move if move and move.version == version else None


@dataclass(frozen=True, slots=True)
class _StoredPlan:
    """A published plan, and the file with the data it was solved from."""

    plan: PublishedPlan
    file: Mapping[str, Any]


def _stored_plan(folder: Path, version: str) -> _StoredPlan | None:
    found = read_plan_file(folder)
    return None if found is None else _StoredPlan(read_published(folder, version), found)


def _served_map(snapshot: Snapshot, stored: _StoredPlan | None) -> dict[str, Any]:
    """Categories and experts in the order of experts.yaml, followed by those in service that it no longer declares."""
    assignment = snapshot.composition.assignment
    categories = _ordered(assignment.categories, snapshot.registry.category_names)
    experts = _ordered(assignment.experts, snapshot.registry.expert_names)
    rows = [assignment.categories.index(name) for name in categories]
    columns = [assignment.experts.index(name) for name in experts]
    quality, price = (table[np.ix_(rows, columns)] for table in (assignment.quality, assignment.price))
    weights = _weights(stored, categories)
    return {
        "categories": categories,
        "experts": experts,
        "general": assignment.general_expert,
        "pinned": dict(snapshot.registry.assignment),
        "assignment": [_row(assignment, row) for row in rows],
        "quality_lower_bound": [[value if np.isfinite(value) else None for value in line] for line in quality.tolist()],
        "hosted": [name for name in experts if name in assignment.hosted],
        "prices": dict(zip(experts, (weights @ price).tolist(), strict=True)),
        "price_by_category": price.tolist(),
        "duals": dict(assignment.duals),
        "consequences": [asdict(one) for one in snapshot.consequences],
        "measured": None if stored is None else _measured(stored, snapshot, categories, experts),
    }


def _weights(stored: _StoredPlan | None, categories: Sequence[str]) -> NDArray[np.float64]:
    """The shares of the categories in the plan; equal ones where they are unknown."""
    known = {} if stored is None else dict(zip(stored.file["categories"], stored.file["weights"], strict=True))
    weights = np.array([known.get(name, 0.0) for name in categories])
    return weights / weights.sum() if weights.any() else np.full(len(categories), 1 / len(categories))


def _row(assignment: Assignment, row: int) -> dict[str, Any]:
    return {
        "category": assignment.categories[row],
        "expert": assignment.choice[row],
        "runner_up": assignment.runner_up[row],
        "margin": assignment.margin[row],
    }


def _measured(
    stored: _StoredPlan, snapshot: Snapshot, categories: Sequence[str], experts: Sequence[str]
) -> dict[str, Any]:
    """The scores that the plan was solved from, null where it has none; uses are those declared now."""
    file = stored.file
    rows, columns = _indices(file["categories"], categories), _indices(file["experts"], experts)
    cells = {
        name: [[None if None in (row, column) else file[name][row][column] for column in columns] for row in rows]
        for name in _MATRICES
    }
    uses = _uses(stored, snapshot.registry, categories, experts)
    weights = [0.0 if row is None else file["weights"][row] for row in rows]
    unchanged = {name: file[name] for name in _UNCHANGED}
    planned = _planned(stored.plan, snapshot)
    return unchanged | cells | uses | {"weights": weights, "planned": planned}


def _planned(plan: PublishedPlan, snapshot: Snapshot) -> dict[str, Any] | None:
    """The expected quality and the resource use of the plan in effect; None where they are unknown."""
    try:
        present = current_problem(plan, snapshot.registry)
    except DataError:
        return None
    if present is None:
        return None
    problem, effect = common_part(present[0], snapshot.composition.assignment)
    return {"quality": planned_quality(problem, effect), "used": planned_use(problem, effect)}


def _indices(known: Sequence[str], names: Sequence[str]) -> list[int | None]:
    return [known.index(name) if name in known else None for name in names]


def _uses(
    stored: _StoredPlan, registry: Registry, categories: Sequence[str], experts: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The current uses of experts, and the planned ones of arms: means over the plan's categories, and by category.

    Unknown uses are null, and so is a use that the plan knows of no expert.
    """
    known_arms = stored.plan.arms(registry)
    used = (*registry.expert_names, *(name for name in experts if name in known_arms))
    declared, weights = stored.plan.uses(registry, categories, used), _weights(stored, categories)
    columns = [used.index(name) if name in used else -1 for name in experts]

    def cells(use: NDArray[np.float64]) -> list[Any]:
        """The values of `experts`, in the last dimension."""
        found = np.where(np.array(columns) >= 0, use[..., columns], np.nan)
        values = found.astype(object)
        values[~np.isfinite(found)] = None
        return list(values.tolist())

    known = {name: getattr(declared, name) for name in USE_OF_ROW.values() if stored.file["uses"][name] is not None}
    unknown = dict.fromkeys(USE_OF_ROW.values())
    means = {name: cells(use if use.ndim == 1 else weights @ use) for name, use in known.items()}
    by_category = {name: cells(use) for name, use in known.items() if use.ndim == 2}
    return {"uses": unknown | means, "uses_by_category": by_category}


def _ordered(names: Sequence[str], declared: Sequence[str]) -> list[str]:
    return sorted(names, key=lambda name: declared.index(name) if name in declared else len(declared))
