"""A published plan: the assignment, and the record of what it was solved from.

The problem of a published plan as experts.yaml declares it now: to solve again, and to compare with. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from coe.errors import ArtifactError, DataError
from coe.mapping.assignment import Assignment
from coe.mapping.basis import read_plan_file, read_problem
from coe.mapping.declaration import Dependencies, declared_uses
from coe.mapping.problem import Array, Problem
from coe.registry import Registry

ASSIGNMENT_FILE = "assignment.json"


@dataclass(frozen=True, slots=True, eq=False)
class PlanRecord:
    """What a plan was solved from.

    `bounds`, of the shape of the problem's quality, are the measured qualities as the plan trusts them, in every cell:
    pins are not applied. `dependencies` is None where the plan does not name them.
    """

    problem: Problem
    bounds: Array
    dependencies: Dependencies | None


@dataclass(frozen=True, slots=True, eq=False)
class PublishedPlan:
    """A plan as it was published; `record` is None where only the assignment was kept."""

    version: str
    assignment: Assignment
    record: PlanRecord | None = None


def read_published(folder: Path, version: str) -> PublishedPlan:
    """Read the folder of a plan. Raises ArtifactError where it is something else."""
    assignment = Assignment.from_json((folder / ASSIGNMENT_FILE).read_bytes())
    return PublishedPlan(version, assignment, _read_record(folder))


def pins_then(plan: PublishedPlan, registry: Registry) -> Mapping[str, str]:
    """The pins that the plan was made with; where it does not name them, the declared ones."""
    if plan.record is not None and plan.record.dependencies is not None:
        return plan.record.dependencies.pins
    return registry.assignment


def _read_record(folder: Path) -> PlanRecord | None:
    kept, solved = read_plan_file(folder), read_problem(folder)
    if kept is None or solved is None:
        return None
    try:
        estimate, error = (np.array(kept[name], dtype=np.float64) for name in ("estimate", "error"))
        bounds = np.maximum(estimate - float(kept["deviations"]) * error, 0.0)
        if bounds.shape != solved[0].quality.shape:
            raise ValueError(f"estimates of shape {bounds.shape}")
        named = kept.get("depends_on")
        return PlanRecord(solved[0], bounds, None if named is None else Dependencies.from_json(named))
    except (KeyError, TypeError, ValueError) as problem:
        raise ArtifactError(f"{folder}: plan.json cannot be read ({problem}); make it again with `coe plan`") from None


def present_problem(
    plan: PublishedPlan, registry: Registry, traffic: Array | None = None
) -> tuple[Problem, Array | None] | None:
    """The measured categories and experts that are still declared, with their present pins and uses, under the plan's
    budget; and the plan's sample of posteriors over these categories. None where no record of the plan was kept.

    A category that is pinned to an expert without scores is left out. Raises DataError where nothing is left.
    """
    record = plan.record
    if record is None:
        return None
    solved, pins, then = record.problem, registry.assignment, pins_then(plan, registry)
    columns = [place for place, name in enumerate(solved.experts) if name in registry.expert_names]
    experts = tuple(solved.experts[column] for column in columns)
    rows = [
        place
        for place, name in enumerate(solved.categories)
        if name in registry.category_names and pins.get(name, experts[0] if experts else "") in experts
    ]
    if not rows:
        raise DataError(f"plan {plan.version}: nothing that it was made of is declared any more; run `coe plan` again")
    categories = tuple(solved.categories[row] for row in rows)
    quality = np.stack([_row(plan, row, pins, then)[columns] for row in rows])
    weights = solved.weights[rows]
    problem = replace(
        solved,
        categories=categories,
        experts=experts,
        quality=quality,
        weights=weights / weights.sum() if len(rows) < len(solved.categories) else weights,
        uses=declared_uses(registry, experts),
    )
    return problem, None if traffic is None else traffic[:, rows]


def _row(plan: PublishedPlan, row: int, pins: Mapping[str, str], then: Mapping[str, str]) -> Array:
    record = plan.record
    assert record is not None
    name, experts = record.problem.categories[row], record.problem.experts
    pin = pins.get(name)
    if pin == then.get(name):
        return np.asarray(record.problem.quality[row])
    if pin is None:
        return np.asarray(record.bounds[row])
    return np.where(np.array(experts) == pin, record.bounds[row], -np.inf)


def comparable(problem: Problem, effect: Assignment) -> tuple[Problem, Assignment]:
    """A problem and the assignment in effect over the categories that both know, and whose expert both know."""
    serves = dict(zip(effect.categories, effect.choice, strict=True))
    rows = [place for place, name in enumerate(problem.categories) if serves.get(name) in problem.experts]
    categories = tuple(problem.categories[row] for row in rows)
    weights = problem.weights[rows]
    part = replace(problem, categories=categories, quality=problem.quality[rows], weights=weights / weights.sum())
    hosted = tuple(name for name in effect.hosted if name in problem.experts)
    return part, replace(effect.over(categories), hosted=hosted)
