"""A published plan: its assignment and the record of what it was solved from. Pure, except for `read_published`.

`current_problem` applies the present declaration to the plan's problem: to solve it again, and to compare with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from coe.errors import ArtifactError, DataError
from coe.mapping.assignment import Assignment
from coe.mapping.declaration import Dependencies, declared_uses
from coe.mapping.plan_file import read_plan_file, read_problem
from coe.mapping.problem import Array, Problem
from coe.registry import Registry

ASSIGNMENT_FILE = "assignment.json"


@dataclass(frozen=True, slots=True, eq=False)
class PlanRecord:
    """What a plan was solved from.

    `bounds`, of the shape of the problem's quality, are the lower confidence bounds of all cells, also of those that a
    pin excludes. `dependencies` is None if the plan does not store them.
    """

    problem: Problem
    bounds: Array
    dependencies: Dependencies | None


@dataclass(frozen=True, slots=True, eq=False)
class PublishedPlan:
    """A plan as it was published; `record` is None if only the assignment was stored."""

    version: str
    assignment: Assignment
    record: PlanRecord | None = None


def read_published(folder: Path, version: str) -> PublishedPlan:
    """Read the folder of a plan. Raises ArtifactError."""
    assignment = Assignment.from_json((folder / ASSIGNMENT_FILE).read_bytes())
    return PublishedPlan(version, assignment, _read_record(folder))


def _read_record(folder: Path) -> PlanRecord | None:
    data, solved = read_plan_file(folder), read_problem(folder)
    if data is None or solved is None:
        return None
    try:
        estimate, error = (np.array(data[name], dtype=np.float64) for name in ("estimate", "error"))
        bounds = np.maximum(estimate - float(data["deviations"]) * error, 0.0)
        if bounds.shape != solved[0].quality.shape:
            raise ValueError(f"estimates of shape {bounds.shape}")
        stored = data["depends_on"]
        return PlanRecord(solved[0], bounds, None if stored is None else Dependencies.from_json(stored))
    except (KeyError, TypeError, ValueError) as problem:
        raise ArtifactError(f"{folder}: plan.json cannot be read ({problem}); make it again with `coe plan`") from None


def planned_pins(plan: PublishedPlan, registry: Registry) -> Mapping[str, str]:
    """Return the pins that the plan was made with, or the declared ones if it does not store them."""
    if plan.record is not None and plan.record.dependencies is not None:
        return plan.record.dependencies.pins
    return registry.assignment


def current_problem(
    plan: PublishedPlan, registry: Registry, traffic: Array | None = None
) -> tuple[Problem, Array | None] | None:
    """Return the plan's problem and traffic over the names still declared; None if the plan has no record.

    Pins and uses are the declared ones, the budget is the plan's. A category that is pinned to an expert without scores
    is left out. Raises DataError if no category is left.
    """
    record = plan.record
    if record is None:
        return None
    solved, pins, then = record.problem, registry.assignment, planned_pins(plan, registry)
    columns = [column for column, name in enumerate(solved.experts) if name in registry.expert_names]
    experts = tuple(solved.experts[column] for column in columns)
    rows = [
        row
        for row, name in enumerate(solved.categories)
        if name in registry.category_names and pins.get(name, experts[0] if experts else "") in experts
    ]
    if not rows:
        raise DataError(f"plan {plan.version}: none of its categories is declared any more; run `coe plan` again")
    quality = np.stack([_quality_row(record, row, pins, then)[columns] for row in rows])
    weights = solved.weights[rows]
    problem = replace(
        solved,
        categories=tuple(solved.categories[row] for row in rows),
        experts=experts,
        quality=quality,
        weights=weights / weights.sum() if len(rows) < len(solved.categories) else weights,
        uses=declared_uses(registry, experts),
    )
    return problem, None if traffic is None else traffic[:, rows]


def _quality_row(record: PlanRecord, row: int, pins: Mapping[str, str], then: Mapping[str, str]) -> Array:
    """Return the qualities of a category under the present pins; `then` are the plan's."""
    name, experts = record.problem.categories[row], record.problem.experts
    pin = pins.get(name)
    if pin == then.get(name):
        return np.asarray(record.problem.quality[row])
    if pin is None:
        return np.asarray(record.bounds[row])
    return np.where(np.array(experts) == pin, record.bounds[row], -np.inf)


def common_part(problem: Problem, effective: Assignment) -> tuple[Problem, Assignment]:
    """Restrict a problem and the effective assignment to their common categories, with an expert that both have."""
    choice = dict(zip(effective.categories, effective.choice, strict=True))
    rows = [row for row, name in enumerate(problem.categories) if choice.get(name) in problem.experts]
    categories = tuple(problem.categories[row] for row in rows)
    weights = problem.weights[rows]
    part = replace(problem, categories=categories, quality=problem.quality[rows], weights=weights / weights.sum())
    hosted = tuple(name for name in effective.hosted if name in problem.experts)
    return part, replace(effective.over(categories), hosted=hosted)
