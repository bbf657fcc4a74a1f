"""The problem of a published plan as experts.yaml declares it now: to solve again, and to compare with. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from coe.errors import DataError
from coe.mapping.assignment import Assignment
from coe.mapping.dependencies import declared_uses
from coe.mapping.problem import Array, Problem
from coe.mapping.published import PublishedPlan, pins_then
from coe.registry import Registry


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
