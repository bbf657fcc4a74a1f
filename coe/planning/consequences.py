"""Differences between a published plan and the current experts.yaml, and the consequence of each. Pure.

The gateway logs them at start and on reload, `coe check` and `coe status` print them, and the admin API returns them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from coe.core import GENERAL
from coe.planning.assignment import Assignment
from coe.planning.plan import planned_use
from coe.planning.plan_file import PlanRecord, PublishedPlan, planned_pins
from coe.planning.problem import USE_OF_ROW, Array, Budget, Dependencies, Problem, changed_fields
from coe.registry import RecipeSpec, Registry

Kind = Literal[
    "expert_added",
    "expert_removed",
    "expert_changed",
    "expert_use_changed",
    "recipe_added",
    "recipe_removed",
    "recipe_bound_changed",
    "category_added",
    "category_removed",
    "category_changed",
    "category_reassigned",
    "pin_changed",
    "general_changed",
    "budget_changed",
    "budget_exceeded",
    "learning",
    "router",
    "gate",
]
LIMIT_TOLERANCE = 1e-3
"""Relative amount by which a use may exceed its limit before that is reported."""
_USE_LABELS = {
    "memory_gb": "memory_gb",
    "active_b": "active_parameters_b",
    "cost": "US dollars per thousand requests",
    "latency_ms": "latency_ms",
}


@dataclass(frozen=True, slots=True)
class Consequence:
    """One difference, about the expert, category or budget row `name`.

    `sentence` describes the difference and its consequence. `replan`: `coe plan` should be run again.
    """

    kind: Kind
    name: str
    sentence: str
    replan: bool = False


def consequences(plan: PublishedPlan, registry: Registry, effective: Assignment) -> tuple[Consequence, ...]:
    """Return all differences of a declaration from a plan, whose `effective` assignment is in use."""
    reassigned = _reassigned_categories(plan.assignment, effective)
    found = [*_experts(plan, registry, effective, reassigned), *_categories(plan, registry, effective)]
    found += _pins(plan, registry, effective)
    if plan.record is not None:
        found += [*_uses(plan, plan.record, registry, effective), *_budget(plan, plan.record, registry, effective)]
    explained = {one.name for one in found if one.kind in ("pin_changed", "general_changed", "category_added")}
    explained |= {category for category, (before, _) in reassigned.items() if before not in effective.experts}
    found += [
        Consequence(
            "category_reassigned", category, f"category {category!r} goes from {before!r} to {now!r}", replan=True
        )
        for category, (before, now) in reassigned.items()
        if category not in explained
    ]
    if found and not _is_same(plan.assignment, effective):
        sentence = "these differences make it another policy: `coe retrain` evaluates it on later requests only"
        found.append(Consequence("learning", "retrain", sentence))
    return tuple(found)


def _is_same(planned: Assignment, effective: Assignment) -> bool:
    same = set(planned.categories) == set(effective.categories)
    return same and effective.over(planned.categories).digest == planned.digest


def _reassigned_categories(planned: Assignment, effective: Assignment) -> dict[str, tuple[str, str]]:
    """Return the planned and the effective expert of each category for which they differ."""
    before = dict(zip(planned.categories, planned.choice, strict=True))
    now = dict(zip(effective.categories, effective.choice, strict=True))
    return {name: (before[name], now[name]) for name in now if name in before and before[name] != now[name]}


def _experts(
    plan: PublishedPlan, registry: Registry, effective: Assignment, reassigned: Mapping[str, tuple[str, str]]
) -> Iterator[Consequence]:
    for name in registry.expert_names:
        if name not in plan.assignment.experts:
            yield _added(name, registry, effective)
    yield from _recipes(plan, registry, reassigned)
    planned = _planned_recipes(plan)
    for name in plan.assignment.experts:
        if name not in planned and name not in registry.expert_names:
            yield _removed("expert_removed", name, reassigned)
    then = dependencies.experts if (dependencies := _dependencies(plan)) else {}
    for spec in registry.experts:
        changed = changed_fields(then.get(spec.name, {}), spec)
        if changed and spec.name in plan.assignment.experts:
            sentence = (
                f"expert {spec.name!r}: {', '.join(changed)} changed since the plan was made; the quality "
                "measured before remains in use. Run `coe score` and `coe plan` again"
            )
            yield Consequence("expert_changed", spec.name, sentence, replan=True)


def _added(name: str, registry: Registry, effective: Assignment) -> Consequence:
    categories = [
        category for category, expert in zip(effective.categories, effective.choice, strict=True) if expert == name
    ]
    routed = (
        f"it answers {', '.join(categories)}, as experts.yaml declares" if categories else "nothing is routed to it"
    )
    rate = registry.policy.exploration.rate
    explored = f", and exploration selects it (rate {rate:g})" if rate else ""
    return Consequence(
        "expert_added",
        name,
        f"expert {name!r} is not in the plan: clients can request it by name, {routed}{explored}. For more, run "
        "`coe score` and `coe plan`",
        replan=True,
    )


def _recipes(
    plan: PublishedPlan, registry: Registry, reassigned: Mapping[str, tuple[str, str]]
) -> Iterator[Consequence]:
    arms = plan.arms(registry)
    for recipe in registry.declared_recipes:
        if recipe.name not in arms:
            yield _added_recipe(recipe)
        elif recipe.max_loss is not None and plan.policies is not None:
            tested = plan.policies.by_arm[recipe.name].max_loss
            if tested is None or tested > recipe.max_loss:
                yield _bound_changed(recipe.name, recipe.max_loss, tested)
    for name in plan.assignment.experts:
        if name in _planned_recipes(plan) and name not in arms:
            yield _removed("recipe_removed", name, reassigned)


def _planned_recipes(plan: PublishedPlan) -> Collection[str]:
    return () if plan.policies is None else plan.policies.steps


def _added_recipe(recipe: RecipeSpec) -> Consequence:
    command = f"coe score --recipe {recipe.name}" if recipe.writes else "coe score"
    sentence = (
        f"recipe {recipe.name!r} is not in the plan as it is declared: clients can request it by name, and nothing is "
        f"routed to it. For more, run `{command}` and `coe plan`"
    )
    return Consequence("recipe_added", recipe.name, sentence, replan=True)


def _bound_changed(name: str, max_loss: float, tested: float | None) -> Consequence:
    then = "without a bound" if tested is None else f"for max_loss {tested:g}"
    sentence = f"recipe {name!r} has max_loss {max_loss:g}, and it was planned {then}. Run `coe plan` again"
    return Consequence("recipe_bound_changed", name, sentence, replan=True)


def _removed(
    kind: Literal["expert_removed", "recipe_removed"], name: str, reassigned: Mapping[str, tuple[str, str]]
) -> Consequence:
    moves = [f"{category} goes to {now!r}" for category, (before, now) in reassigned.items() if before == name]
    what = f"expert {name!r} is no longer declared"
    if kind == "recipe_removed":
        what = f"recipe {name!r} of the plan is no longer declared with the same members"
    consequence = f": {', '.join(moves)}. Run `coe plan` again" if moves else "; it served no declared category"
    return Consequence(kind, name, what + consequence, replan=bool(moves))


def _categories(plan: PublishedPlan, registry: Registry, effective: Assignment) -> Iterator[Consequence]:
    planned, dependencies = plan.assignment.categories, _dependencies(plan)
    then = dependencies.categories if dependencies else {}
    now = Dependencies.of(registry).categories
    serves = dict(zip(effective.categories, effective.choice, strict=True))
    for name in registry.category_names:
        if name not in planned:
            same = [old for old in planned if old not in now and then.get(old) == now[name]]
            renamed = f" It has the description of {same[0]!r}, but a renamed category is a new one." if same else ""
            yield Consequence(
                "category_added",
                name,
                f"category {name!r} is not in the plan: {serves[name]!r} answers it.{renamed} Run `coe score` with "
                "probes of it, and `coe plan`",
                replan=True,
            )
        elif name in then and then[name] != now[name]:
            yield Consequence(
                "category_changed",
                name,
                f"category {name!r} has another description than when the plan was made; {serves[name]!r} "
                "still answers it",
            )
    for name in planned:
        if name not in now:
            yield Consequence(
                "category_removed", name, f"category {name!r} is no longer declared; its part of the plan is unused"
            )


def _pins(plan: PublishedPlan, registry: Registry, effective: Assignment) -> Iterator[Consequence]:
    then, now = planned_pins(plan, registry), registry.assignment
    serves = dict(zip(effective.categories, effective.choice, strict=True))
    for name in registry.category_names:
        before, pin = then.get(name), now.get(name)
        if before == pin or name not in plan.assignment.categories:
            continue
        if name == GENERAL and pin is not None:
            was = f", no longer {before!r}" if before else ""
            sentence = f"the general expert is {pin!r} now{was}: uncertain requests go to it immediately"
            yield Consequence("general_changed", name, sentence, replan=True)
        elif pin is not None:
            was = f"no longer {before!r}" if before else "no longer planned"
            sentence = f"category {name!r} is pinned to {pin!r} now, {was}: it answers immediately"
            yield Consequence("pin_changed", name, sentence, replan=True)
        else:
            sentence = f"category {name!r} is no longer pinned to {before!r}: {serves[name]!r} is the best by the plan"
            yield Consequence("pin_changed", name, sentence, replan=True)


def _uses(plan: PublishedPlan, record: PlanRecord, registry: Registry, effective: Assignment) -> Iterator[Consequence]:
    problem = record.problem
    names = tuple(name for name in registry.expert_names if name in problem.experts)
    columns = [problem.experts.index(name) for name in names]
    then = problem.uses.part(range(len(problem.categories)), columns)
    now = plan.uses(registry, problem.categories, names)
    limited = {USE_OF_ROW[row] for row in problem.budget.rows() if row in USE_OF_ROW}
    for column, name in enumerate(names):
        changes, binding = [], False
        for use, label in _USE_LABELS.items():
            before, after = (_of_column(getattr(uses, use), column) for uses in (then, now))
            if not np.array_equal(before, after, equal_nan=True):
                means = (_number(_mean(use, problem.weights)) for use in (before, after))
                changes.append(f"{label} {' -> '.join(means)}")
                binding = binding or use in limited
        if changes:
            price = _price_change(plan.assignment, effective, name)
            free = "" if binding else "; no limit of the plan depends on it"
            sentence = f"expert {name!r}: {', '.join(changes)}{price}{free}"
            yield Consequence("expert_use_changed", name, sentence, replan=binding)


def _price_change(planned: Assignment, effective: Assignment, name: str) -> str:
    """Return the change of the mean price over the categories that both assignments have; empty if there is none."""
    common = [category for category in planned.categories if category in effective.categories]
    if name not in planned.experts or not common:
        return ""
    before, after = (
        float(one.over(tuple(common)).price[:, one.experts.index(name)].mean()) for one in (planned, effective)
    )
    return "" if before == after else f"; its mean price in the plan {before:.4f} -> {after:.4f} (in quality)"


def _budget(
    plan: PublishedPlan, record: PlanRecord, registry: Registry, effective: Assignment
) -> Iterator[Consequence]:
    then, now = record.problem.budget.rows(), Budget(**registry.budget.model_dump()).rows()
    for row in Budget.__dataclass_fields__:
        before, after = then.get(row), now.get(row)
        if before != after:
            sentence = f"budget: {row} {_number(before)} -> {_number(after)}: the plan keeps the former limit"
            yield Consequence("budget_changed", row, f"{sentence}. Run `coe plan`", replan=True)
    used = planned_use(_as_problem(plan, record.problem, registry, effective), effective)
    for row, limit in now.items():
        if used.get(row, 0.0) > limit * (1 + LIMIT_TOLERANCE):
            sentence = f"budget: the plan uses {row} {used[row]:.4g}, above the limit of {limit:g}. Run `coe plan`"
            yield Consequence("budget_exceeded", row, sentence, replan=True)


def _as_problem(plan: PublishedPlan, problem: Problem, registry: Registry, effective: Assignment) -> Problem:
    """Return the effective assignment as a problem without limits. A category that the plan lacks has weight 0."""
    weights = dict(zip(problem.categories, problem.weights.tolist(), strict=True))
    mass = np.array([weights.get(name, 0.0) for name in effective.categories])
    quality = np.where(np.isfinite(effective.quality), effective.quality, 0.0)
    mass = mass / mass.sum() if mass.sum() > 0 else np.full(len(mass), 1 / len(mass))
    return replace(
        problem,
        categories=effective.categories,
        experts=effective.experts,
        quality=quality,
        weights=mass,
        uses=plan.uses(registry, effective.categories, effective.experts),
        budget=Budget(),
        members={arm: members for arm, members in problem.members.items() if arm in effective.experts},
    )


def _dependencies(plan: PublishedPlan) -> Dependencies | None:
    return None if plan.record is None else plan.record.dependencies


def _of_column(use: Array | None, column: int) -> Array:
    """Return an expert's use by category, or its memory; NaN where unknown."""
    return np.full((), np.nan) if use is None else np.asarray(use[..., column])


def _mean(use: Array, weights: Array) -> float | None:
    mean = float(weights @ use if use.ndim else use)
    return mean if np.isfinite(mean) else None


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
