"""Adapts a plan to the current experts.yaml, and reports the consequences of each difference.

The result is the effective plan. `coe.artifacts.active_state` computes it for the gateway and for jobs. The module is
pure: it reads no file. The rules are:

- A declared expert that is not in the plan serves no category until it is scored, except by pins and exploration.
- The categories of an expert that is no longer declared go to the best remaining expert.
- A recipe arm that is not in the plan, or whose members changed, is selected by pins only.
- A category that is not in the plan goes to its pinned expert, or else to the expert of `general`.
- Prices are computed from the plan's duals and the declared uses; those of arms are the planned uses.
- An arm stays if its recipe still declares the planned steps, and for a chain or fuse the planned instruction.

The gateway logs the consequences at start and on reload, `coe check` and `coe status` print them, and the admin API
returns them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from coe.core import GENERAL
from coe.errors import ArtifactError
from coe.planning.assignment import Assignment
from coe.planning.grid import Array, align, select
from coe.planning.plan import ANSWER_FIELDS, Plan, answer_digests
from coe.planning.prices import SHARE_DUAL_PREFIX, mean_rows
from coe.planning.problem import BUDGET_ROWS, USE_OF_ROW, Problem
from coe.planning.solver import planned_use
from coe.planning.uses import BY_CATEGORY, Uses, declared_uses
from coe.recipes.policy_file import NO_POLICIES, ArmPolicies
from coe.registry import Registry

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
    "category_reassigned",
    "pin_changed",
    "budget_changed",
    "budget_exceeded",
    "learning",
    "router",
    "gate",
]
LIMIT_TOLERANCE = 1e-3
"""Relative amount by which a use may exceed its limit before that is reported."""


@dataclass(frozen=True, slots=True)
class Consequence:
    """One difference, about the expert, category or budget row `name`.

    `sentence` describes the difference and its consequence. `replan`: `coe plan` should be run again.
    """

    kind: Kind
    name: str
    sentence: str
    replan: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class EffectivePlan:
    """The assignment over the declared categories and experts, and the consequences of differences from the plan.

    Arms of recipes that the plan measured are further columns; `policies` are their policies over the same categories.
    """

    assignment: Assignment
    consequences: tuple[Consequence, ...] = ()
    policies: ArmPolicies = NO_POLICIES

    def over(self, categories: tuple[str, ...]) -> EffectivePlan:
        """Return the plan with its categories in this order."""
        return replace(self, assignment=self.assignment.over(categories), policies=self.policies.over(categories))


def effective_plan(plan: Plan, registry: Registry) -> EffectivePlan:
    """Apply a plan to a declaration. Without differences the assignment is the planned one.

    Raises ArtifactError, with the remedy, if none of the plan's categories or experts is declared any more.
    """
    problem = present_problem(plan, registry)
    assignment = _assignment(plan, registry, problem)
    policies = plan.policies.only(plan.arms(registry)).over(registry.category_names)
    return EffectivePlan(assignment, _consequences(plan, registry, problem, assignment), policies)


def present_problem(plan: Plan, registry: Registry) -> Problem:
    """Return the plan's problem over the declared names, without a budget.

    Its columns are the declared experts and the plan's arms. Pins and uses are the declared ones. An expert that the
    plan lacks may serve no category, unless it is pinned or the general expert of a category that the plan lacks: then
    its quality is estimated. Categories that only such experts may serve have weight 0. Raises ArtifactError if none
    of the plan's categories or experts is declared any more.
    """
    planned, arms = plan.problem, plan.arms(registry)
    categories, experts = registry.category_names, (*registry.expert_names, *arms)
    for kind, known, names in (
        ("categories", planned.categories, categories),
        ("experts", planned.experts, registry.expert_names),
    ):
        if not set(known) & set(names):
            raise ArtifactError(
                f"the plan knows none of the {kind} in experts.yaml (it knows {', '.join(known)}); "
                "run `coe score` and `coe plan` again, or `coe plan --forget` to go back to the declared assignment"
            )
    names_then, names_now = (planned.categories, planned.experts), (categories, experts)
    quality, bounds = (
        align(np.where(np.isfinite(values), values, np.nan), names_then, names_now)
        for values in (planned.quality, plan.bounds)
    )
    weights = select(planned.weights, planned.categories, categories, missing=0.0)
    for row, category in enumerate(categories):
        pin, then = registry.assignment.get(category), plan.pins.get(category)
        if category not in planned.categories or (pin is None and np.isnan(bounds[row]).all()):
            pin = pin or _general_expert(plan, registry)
        elif pin == then and np.isfinite(quality[row]).any():
            continue
        elif pin is None:
            quality[row] = bounds[row]
            continue
        column = experts.index(pin)
        quality[row] = np.nan
        quality[row, column] = _estimate(bounds, row, column)
        weights[row] *= bool(np.isfinite(bounds[row, column]))
    uses = declared_uses(registry, categories, registry.expert_names, measured=plan.measured_uses)
    of_arms = planned.uses.of_arms(names_then, (categories, arms))
    return Problem(
        categories,
        experts,
        quality,
        weights / weights.sum() if weights.any() else np.full(len(weights), 1 / len(weights)),
        uses.joined(of_arms, len(arms)),
        members={arm: members for arm, members in planned.members.items() if arm in arms},
    )


def _general_expert(plan: Plan, registry: Registry) -> str:
    """Return the expert of `general`: the pinned one, or the planned one, or the default."""
    planned = dict(zip(plan.assignment.categories, plan.assignment.choice, strict=True)).get(GENERAL)
    known = planned in registry.expert_names and GENERAL not in registry.assignment
    return planned if planned is not None and known else registry.general_expert


def _estimate(bounds: Array, row: int, column: int) -> float:
    """Return the quality of one cell: as measured, or else the mean of the category, the expert, or all cells."""
    for cells in (bounds[row, column], bounds[row], bounds[:, column], bounds):
        if np.isfinite(cells).any():
            return float(np.nanmean(cells))
    return 1.0


def _assignment(plan: Plan, registry: Registry, problem: Problem) -> Assignment:
    """Return the assignment in effect. In each category, the hosted experts that may serve it do, or else all of them;
    the chosen one is the planned one, unless it may not serve any more or another one became better."""
    planned, names = plan.assignment, (problem.categories, problem.experts)
    hosted = np.isfinite(problem.quality) & np.isin(problem.experts, planned.hosted)
    quality = np.where(hosted | ~hosted.any(axis=1, keepdims=True), problem.quality, -np.inf)
    price = _prices(plan, problem)
    chosen = dict(zip(planned.categories, zip(planned.choice, planned.runners_up, strict=True), strict=True))
    choice = []
    for category, utility in zip(problem.categories, quality - price, strict=True):
        best = problem.experts[int(utility.argmax())]
        expert, (_, margin) = chosen.get(category, (best, (None, 0.0)))
        own = utility[problem.experts.index(expert)] if expert in problem.experts else -np.inf
        overtaken = margin >= 0 and utility.max() > own
        choice.append(best if overtaken or not np.isfinite(own) else expert)
    before = np.zeros(planned.quality.shape) if planned.unmeasured is None else planned.unmeasured.astype(np.float64)
    untried = align(before, (planned.categories, planned.experts), names, missing=1.0) > 0
    fixed = [name not in planned.categories or name in registry.assignment for name in problem.categories]
    untried &= ~np.array(fixed)[:, None] & ~np.isfinite(quality) & ~problem.is_arm  # recipes are never explored
    duals = {
        row: dual
        for row, dual in planned.duals.items()
        if not row.startswith(SHARE_DUAL_PREFIX) or row.removeprefix(SHARE_DUAL_PREFIX) in problem.experts
    }
    return Assignment(
        *names,
        quality,
        price,
        tuple(choice),
        tuple(name for name in problem.experts if name in planned.hosted or name in choice),
        duals,
        untried if untried.any() else None,
        None if planned.residual is None else planned.residual.over(*names),
    )


def _prices(plan: Plan, problem: Problem) -> Array:
    """Return the prices by the plan's duals and the present uses. An expert of unknown use gets the largest one."""
    uses: dict[str, Any] = {name: problem.use(row) for row, name in USE_OF_ROW.items()}
    filled = {name: np.where(np.isfinite(use), use, np.nanmax(use, initial=0.0)) for name, use in uses.items()}
    rows = mean_rows(replace(problem, uses=replace(problem.uses, **filled), budget=plan.problem.budget))
    price = rows.price(np.array([plan.assignment.duals.get(name, 0.0) for name in rows.names]))
    planned = np.isin(problem.experts, plan.problem.experts)
    return np.where(planned & ~np.isin(problem.experts, plan.assignment.hosted), 0.0, price)


def _consequences(plan: Plan, registry: Registry, problem: Problem, effective: Assignment) -> tuple[Consequence, ...]:
    before = dict(zip(plan.assignment.categories, plan.assignment.choice, strict=True))
    now = dict(zip(effective.categories, effective.choice, strict=True))
    moved = {name: (before[name], now[name]) for name in now if name in before and before[name] != now[name]}
    found = [
        *_experts(plan, registry, now, moved),
        *_recipes(plan, registry, moved),
        *_categories(plan, registry, now),
        *_uses(plan, registry),
        *_budget(plan, registry, problem, effective),
    ]
    explained = {one.name for one in found if one.kind == "pin_changed"}
    explained |= {category for category, (before, _) in moved.items() if before not in effective.experts}
    for category, (then, expert) in moved.items():
        if category not in explained:
            sentence = f"category {category!r} goes from {then!r} to {expert!r}"
            found.append(Consequence("category_reassigned", category, sentence, replan=True))
    same = set(plan.assignment.categories) == set(effective.categories)
    if found and not (same and effective.over(plan.assignment.categories).digest == plan.assignment.digest):
        sentence = "these differences make it another policy: `coe retrain` evaluates it on later requests only"
        found.append(Consequence("learning", "retrain", sentence))
    return tuple(found)


def _experts(
    plan: Plan, registry: Registry, now: Mapping[str, str], moved: Mapping[str, tuple[str, str]]
) -> Iterator[Consequence]:
    planned, rate = plan.assignment.experts, registry.policy.exploration.rate
    for name in registry.expert_names:
        if name not in planned:
            categories = ", ".join(category for category, expert in now.items() if expert == name)
            routed = f"it answers {categories}, as experts.yaml declares" if categories else "nothing is routed to it"
            explored = f", and exploration selects it (rate {rate:g})" if rate else ""
            sentence = f"expert {name!r} is not in the plan: clients can request it by name, {routed}{explored}"
            yield Consequence("expert_added", name, f"{sentence}. For more, run `coe score` and `coe plan`", True)
    for name in planned:
        if name not in plan.policies.steps and name not in registry.expert_names:
            yield _removed("expert_removed", name, f"expert {name!r} is no longer declared", moved)
    for name, digests in answer_digests(registry).items():
        then = plan.answers.get(name, digests)
        if name in planned and (changed := [one for one in ANSWER_FIELDS if then.get(one) != digests[one]]):
            sentence = (
                f"expert {name!r}: {', '.join(changed)} changed since the plan was made; the quality measured before "
                "remains in use. Run `coe score` and `coe plan` again"
            )
            yield Consequence("expert_changed", name, sentence, replan=True)


def _removed(
    kind: Literal["expert_removed", "recipe_removed"], name: str, what: str, moved: Mapping[str, tuple[str, str]]
) -> Consequence:
    moves = [f"{category} goes to {now!r}" for category, (before, now) in moved.items() if before == name]
    consequence = f": {', '.join(moves)}. Run `coe plan` again" if moves else "; it served no declared category"
    return Consequence(kind, name, what + consequence, replan=bool(moves))


def _recipes(plan: Plan, registry: Registry, moved: Mapping[str, tuple[str, str]]) -> Iterator[Consequence]:
    arms = plan.arms(registry)
    for recipe in registry.declared_recipes:
        name, bound = recipe.name, recipe.max_loss
        if name not in arms:
            command = f"coe score --recipe {name}" if recipe.writes else "coe score"
            sentence = (
                f"recipe {name!r} is not in the plan as it is declared: clients can request it by name, and nothing is "
                f"routed to it. For more, run `{command}` and `coe plan`"
            )
            yield Consequence("recipe_added", name, sentence, replan=True)
        elif bound is not None:
            tested = plan.policies.by_arm[name].max_loss
            if tested is None or tested > bound:
                then = "without a bound" if tested is None else f"for max_loss {tested:g}"
                sentence = f"recipe {name!r} has max_loss {bound:g}, and it was planned {then}. Run `coe plan` again"
                yield Consequence("recipe_bound_changed", name, sentence, replan=True)
    for name in plan.assignment.experts:
        if name in plan.policies.steps and name not in arms:
            what = f"recipe {name!r} of the plan is no longer declared with the same members"
            yield _removed("recipe_removed", name, what, moved)


def _categories(plan: Plan, registry: Registry, now: Mapping[str, str]) -> Iterator[Consequence]:
    planned = plan.assignment.categories
    for name in registry.category_names:
        before, pin = plan.pins.get(name), registry.assignment.get(name)
        if name not in planned:
            sentence = (
                f"category {name!r} is not in the plan: {now[name]!r} answers it. Run `coe score` with probes of it, "
                "and `coe plan`"
            )
            yield Consequence("category_added", name, sentence, replan=True)
        elif before != pin and pin is None:
            sentence = f"category {name!r} is no longer pinned to {before!r}: {now[name]!r} is the best by the plan"
            yield Consequence("pin_changed", name, sentence, replan=True)
        elif before != pin:
            was = f"no longer {before!r}" if before else "no longer planned"
            sentence = f"category {name!r} is pinned to {pin!r} now, {was}: it answers immediately"
            yield Consequence("pin_changed", name, sentence, replan=True)
    for name in planned:
        if name not in registry.category_names:
            sentence = f"category {name!r} is no longer declared; its part of the plan is unused"
            yield Consequence("category_removed", name, sentence)


def _uses(plan: Plan, registry: Registry) -> Iterator[Consequence]:
    """Compare the uses of the experts over the plan's categories."""
    planned = plan.problem
    names = [name for name in registry.expert_names if name in planned.experts]
    present = declared_uses(registry, planned.categories, names, measured=plan.measured_uses)
    for column, name in enumerate(names):
        changes, binding = [], False
        for row, use in USE_OF_ROW.items():
            then, now = _mean(plan, planned.uses, use, planned.experts.index(name)), _mean(plan, present, use, column)
            if not np.isclose(then, now, rtol=1e-9, atol=0, equal_nan=True):
                changes.append(f"{row.removeprefix('mean_')} {_number(then)} -> {_number(now)}")
                binding = binding or row in planned.budget
        if changes:
            free = "" if binding else "; no limit of the plan depends on it"
            yield Consequence("expert_use_changed", name, f"expert {name!r}: {', '.join(changes)}{free}", binding)


def _mean(plan: Plan, uses: Uses, use: str, column: int) -> float:
    values = getattr(uses, use)
    if values is None:
        return float("nan")
    return float(plan.problem.weights @ values[:, column] if use in BY_CATEGORY else values[column])


def _budget(plan: Plan, registry: Registry, problem: Problem, effective: Assignment) -> Iterator[Consequence]:
    then, now = plan.problem.budget, registry.budget.model_dump(exclude_none=True)
    for row in BUDGET_ROWS:
        if then.get(row) != now.get(row):
            sentence = (
                f"budget: {row} {_number(then.get(row))} -> {_number(now.get(row))}: the plan keeps the former limit"
            )
            yield Consequence("budget_changed", row, f"{sentence}. Run `coe plan`", replan=True)
    used = planned_use(problem, effective)
    for row, limit in now.items():
        if used.get(row, 0.0) > limit * (1 + LIMIT_TOLERANCE):
            sentence = f"budget: the plan uses {row} {used[row]:.4g}, above the limit of {limit:g}. Run `coe plan`"
            yield Consequence("budget_exceeded", row, sentence, replan=True)


def _number(value: float | None) -> str:
    return "none" if value is None or np.isnan(value) else f"{value:.4g}"
