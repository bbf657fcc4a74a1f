"""`/v1/map`: who answers what and how well that is known, and what another budget would give."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from coe.artifacts import ArtifactStore, Promotion
from coe.errors import ArtifactError, NothingMeasured
from coe.mapping import Assignment, planned_quality, planned_use, read_plan_file, read_problem
from gateway.admin.operation import Operation, Schema, listed, whole
from gateway.checked import arrived, checked
from gateway.current import Serving
from gateway.in_use import ASSIGNMENT

if TYPE_CHECKING:
    from gateway.app import Parts

MAX_BODY = 4 * 1024
_BY_CELL = ("mean", "count", "estimate", "error", "quality")
_GOES_ON = ("source", "deviations", "uses", "budget", "value_of_expert", "planned")
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
        self._kept: tuple[str, dict[str, Any] | None] = ("", None)

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
        plan = await self._solver.solve(version, budget.model_dump())
        return Response(orjson.dumps({"object": "plan", "version": version, **plan}), media_type="application/json")

    def _read(self, version: str | None) -> tuple[dict[str, Any] | None, Promotion | None]:
        """What the plan was made of, None where nobody kept it, and when it came into use."""
        if version is None:
            return None, None
        try:
            if self._kept[0] != version:
                self._kept = version, _kept(self._store.published(version).folder)
            move = self._store.latest()
        except ArtifactError:  # damaged since it was taken over: what is served goes on
            return None, None
        return self._kept[1], move if move and move.version == version else None


def _kept(folder: Path) -> dict[str, Any] | None:
    """With what the plan comes to."""
    found, problem = read_plan_file(folder), read_problem(folder)
    if found is None or problem is None:
        return None
    plan = Assignment.from_json((folder / f"{ASSIGNMENT}.json").read_bytes())
    planned = {"quality": planned_quality(problem[0], plan), "used": planned_use(problem[0], plan)}
    return found | {"planned": planned}


def _told(serving: Serving, kept: dict[str, Any] | None) -> dict[str, Any]:
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
        "measured": None if kept is None else _measured(kept, categories, experts),
    }


def _row(assignment: Assignment, row: int) -> dict[str, Any]:
    return {
        "category": assignment.categories[row],
        "expert": assignment.choice[row],
        "runner_up": assignment.runner_up[row],
        "margin": assignment.margin[row],
    }


def _measured(kept: dict[str, Any], categories: Sequence[str], experts: Sequence[str]) -> dict[str, Any]:
    rows = [kept["categories"].index(name) for name in categories]
    columns = [kept["experts"].index(name) for name in experts]
    cells = {name: [[kept[name][row][column] for column in columns] for row in rows] for name in _BY_CELL}
    uses = {name: use and [use[column] for column in columns] for name, use in kept["uses"].items()}
    points = ("limit", "quality", "used", "efficient")
    frontiers = {
        row: [{name: one[name] for name in points} for one in found] for row, found in kept["frontiers"].items()
    }
    weights = [kept["weights"][row] for row in rows]
    return {name: kept[name] for name in _GOES_ON} | cells | {"uses": uses, "weights": weights, "frontiers": frontiers}


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
