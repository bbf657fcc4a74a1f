"""`/v1/map`: who answers what and how well that is known, and what another budget would give."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from coe.artifacts.history import Promotion
from coe.artifacts.store import ArtifactStore
from coe.errors import ArtifactError, DataError, NothingMeasured
from coe.mapping import (
    Assignment,
    PublishedPlan,
    Uses,
    comparable,
    declared_uses,
    planned_quality,
    planned_use,
    present_problem,
    read_plan_file,
    read_published,
)
from coe.registry import Registry
from coe.runtime.active_state import ASSIGNMENT
from gateway.endpoints.admin.operation import Operation, Schema, listed, whole
from gateway.request.validation import arrived, checked
from gateway.serving_state import Serving

if TYPE_CHECKING:
    from gateway.parts import Parts

MAX_BODY = 4 * 1024
_BY_CELL = ("mean", "count", "estimate", "error", "quality")
_GOES_ON = ("source", "deviations", "uses", "budget", "value_of_expert")
_Limit = Annotated[float, Field(gt=0, le=1e15, allow_inf_nan=False)]


class Ask(BaseModel):
    """The budget to solve under; a row that is left out, or null, limits nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    memory_gb: _Limit | None = None
    """Of all hosted experts together."""
    mean_active_b: _Limit | None = None
    """Active parameters, in billions, a request on average."""
    mean_cost: _Limit | None = None
    """US dollars a thousand requests on average."""
    mean_latency_ms: _Limit | None = None
    max_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Largest share of the requests of one expert."""


class Map:
    """What this worker serves with, and what was kept of how its plan was made, read once a version."""

    def __init__(self, parts: Parts) -> None:
        self._current, self._solver = parts.current, parts.solver
        self._store = ArtifactStore(parts.settings.artifacts, ASSIGNMENT)
        self._kept: tuple[str, _Kept | None] = ("", None)

    async def now(self, _: Request) -> Response:
        """`GET /v1/map`."""
        serving = self._current.serving
        version = serving.versions.get(ASSIGNMENT)
        kept, move = await asyncio.to_thread(self._read, version)
        told = await asyncio.to_thread(_told, serving, kept)
        body = {"object": "map", "version": version, "move": move and asdict(move), **told}
        return Response(orjson.dumps(body), media_type="application/json")

    async def solve(self, request: Request) -> Response:
        """`POST /v1/map/solve`."""
        budget = checked(Ask, await arrived(request, limit=MAX_BODY))
        version = self._current.serving.versions.get(ASSIGNMENT)
        kept, _ = await asyncio.to_thread(self._read, version)
        if version is None or kept is None:
            raise NothingMeasured(
                "there are no scores to plan on: measure the experts with `coe score`, then run `coe plan`"
            )
        declared = self._current.serving.registry.digest
        plan = await self._solver.solve(version, budget.model_dump(), declared=declared)
        return Response(orjson.dumps({"object": "plan", "version": version, **plan}), media_type="application/json")

    def _read(self, version: str | None) -> tuple[_Kept | None, Promotion | None]:
        """What the plan was made of, None where nobody kept it, and when it came into use."""
        if version is None:
            return None, None
        try:
            if self._kept[0] != version:
                self._kept = version, _kept(self._store.published(version).folder, version)
            move = self._store.last_move()
        except ArtifactError:  # damaged since it was taken over: what is served goes on
            return None, None
        return self._kept[1], move if move and move.version == version else None


@dataclass(frozen=True, slots=True)
class _Kept:
    """A published plan, and its file of what it was solved from."""

    plan: PublishedPlan
    file: Mapping[str, Any]


def _kept(folder: Path, version: str) -> _Kept | None:
    found = read_plan_file(folder)
    return None if found is None else _Kept(read_published(folder, version), found)


def _told(serving: Serving, kept: _Kept | None) -> dict[str, Any]:
    """Categories and experts in the order of experts.yaml; one that is served and not declared any more comes last."""
    assignment = serving.composition.assignment
    categories = _ordered(assignment.categories, serving.registry.category_names)
    experts = _ordered(assignment.experts, serving.registry.expert_names)
    rows = [assignment.categories.index(name) for name in categories]
    columns = [assignment.experts.index(name) for name in experts]
    quality = assignment.quality[np.ix_(rows, columns)]
    return {
        "categories": categories,
        "experts": experts,
        "general": serving.registry.general_expert,
        "pinned": dict(serving.registry.assignment),
        "assignment": [_row(assignment, row) for row in rows],
        "trusted": [[value if np.isfinite(value) else None for value in line] for line in quality.tolist()],
        "hosted": [name for name in experts if name in assignment.hosted],
        "prices": {name: float(assignment.price[column]) for name, column in zip(experts, columns, strict=True)},
        "duals": dict(assignment.duals),
        "consequences": [asdict(one) for one in serving.consequences],
        "measured": None if kept is None else _measured(kept, serving, categories, experts),
    }


def _row(assignment: Assignment, row: int) -> dict[str, Any]:
    return {
        "category": assignment.categories[row],
        "expert": assignment.choice[row],
        "runner_up": assignment.runner_up[row],
        "margin": assignment.margin[row],
    }


def _measured(kept: _Kept, serving: Serving, categories: Sequence[str], experts: Sequence[str]) -> dict[str, Any]:
    """What the plan was solved from, null in the cells of what it does not know; uses are those declared now."""
    file = kept.file
    rows, columns = _places(file["categories"], categories), _places(file["experts"], experts)
    cells = {
        name: [[None if None in (row, column) else file[name][row][column] for column in columns] for row in rows]
        for name in _BY_CELL
    }
    declared = declared_uses(serving.registry)
    uses = {
        name: None if file["uses"][name] is None else [_use(declared, name, serving.registry, one) for one in experts]
        for name in file["uses"]
    }
    points = ("limit", "quality", "used", "efficient")
    frontiers = {
        row: [{name: one[name] for name in points} for one in found] for row, found in file["frontiers"].items()
    }
    weights = [0.0 if row is None else file["weights"][row] for row in rows]
    goes_on = {name: file[name] for name in _GOES_ON}
    planned = _planned(kept.plan, serving)
    return goes_on | cells | {"uses": uses, "weights": weights, "frontiers": frontiers, "planned": planned}


def _planned(plan: PublishedPlan, serving: Serving) -> dict[str, Any] | None:
    """The quality and the uses of the plan in effect, as far as they are known."""
    try:
        present = present_problem(plan, serving.registry)
    except DataError:
        return None
    if present is None:
        return None
    problem, effect = comparable(present[0], serving.composition.assignment)
    return {"quality": planned_quality(problem, effect), "used": planned_use(problem, effect)}


def _places(known: Sequence[str], names: Sequence[str]) -> list[int | None]:
    return [known.index(name) if name in known else None for name in names]


def _use(uses: Uses, name: str, registry: Registry, expert: str) -> float | None:
    if expert not in registry.expert_names:
        return None
    value = float(getattr(uses, name)[registry.expert_names.index(expert)])
    return value if np.isfinite(value) else None


def _ordered(names: Sequence[str], declared: Sequence[str]) -> list[str]:
    return sorted(names, key=lambda name: declared.index(name) if name in declared else len(declared))


_TEXT: Schema = {"type": "string"}
_MAYBE: Schema = {"type": ["string", "null"]}
_ROWS = listed({"type": "object"})["properties"]["data"]
_MAP = whole(
    {
        "object": {"const": "map"},
        "version": _MAYBE,
        "categories": {"type": "array", "items": _TEXT},
        "experts": {"type": "array", "items": _TEXT},
        "assignment": _ROWS,
        "prices": {"type": "object"},
        "consequences": _ROWS,
        "measured": {"type": ["object", "null"]},
    }
)
_PLAN = whole({"object": {"const": "plan"}, "version": _TEXT, "quality": {"type": "number"}, "assignment": _ROWS})

OPERATIONS = (
    Operation("readMap", "GET", "/v1/map", "Who answers what, and how well that is known", Map.now, _MAP),
    Operation(
        "solveMap",
        "POST",
        "/v1/map/solve",
        "The plan under another budget; nothing is put into use",
        Map.solve,
        _PLAN,
        body=Ask,
        problems=(400, 408, 409, 413, 415, 501, 503),
    ),
)
