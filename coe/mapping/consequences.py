"""The differences between a plan and the present experts.yaml, each with what follows from it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from coe.core import GENERAL
from coe.mapping.assignment import Assignment
from coe.mapping.declaration import Dependencies, changed_fields, declared_uses
from coe.mapping.plan import planned_use
from coe.mapping.problem import USE_OF_ROW, Budget, Problem
from coe.mapping.published import PlanRecord, PublishedPlan, pins_then
from coe.registry import Registry

Kind = Literal[
    "expert_added",
    "expert_removed",
    "expert_changed",
    "expert_use_changed",
    "category_added",
    "category_removed",
    "category_changed",
    "category_moved",
    "pin_changed",
    "general_changed",
    "budget_changed",
    "budget_exceeded",
    "learning",
    "router",
    "overlays",
    "gate",
]
ROUNDING = 1e-3
"""Share of a limit by which a use may exceed it before that is reported."""
_USES = {
    "memory_gb": "memory_gb",
    "active_b": "active_parameters_b",
    "cost": "US dollars per thousand requests",
    "latency_ms": "latency_ms",
}


@dataclass(frozen=True, slots=True)
class Consequence:
    """One difference, by the `name` of the expert, category or budget row that it is about.

    `sentence` says what differs and what follows from it. `replan` is True where `coe plan` should be run again.
    """

    kind: Kind
    name: str
    sentence: str
    replan: bool = False


def consequences(plan: PublishedPlan, registry: Registry, effect: Assignment) -> tuple[Consequence, ...]:
    """All differences of a declaration from the plan, whose `effect` is the assignment that serves."""
    moves = _moves(plan.assignment, effect)
    found = [*_experts(plan, registry, effect, moves), *_categories(plan, registry, effect)]
    found += _pins(plan, registry, effect)
    if plan.record is not None:
        found += [*_uses(plan, plan.record, registry, effect), *_budget(plan.record, registry, effect)]
    told = {one.name for one in found if one.kind in ("pin_changed", "general_changed", "category_added")}
    gone = {category for category, (before, _) in moves.items() if before not in registry.expert_names}
    found += [
        Consequence("category_moved", category, f"category {category!r} goes from {before!r} to {now!r}", replan=True)
        for category, (before, now) in moves.items()
        if category not in told | gone
    ]
    if found and not _same(plan.assignment, effect):
        sentence = "with these differences it is another policy: `coe retrain` judges it by the requests that follow"
        found.append(Consequence("learning", "retrain", sentence))
    return tuple(found)


def _same(planned: Assignment, effect: Assignment) -> bool:
    """Whether both decide alike."""
    same = set(planned.categories) == set(effect.categories)
    return same and effect.over(planned.categories).digest == planned.digest


def _moves(planned: Assignment, effect: Assignment) -> dict[str, tuple[str, str]]:
    """By category that another expert serves now: the planned one and that one."""
    before = dict(zip(planned.categories, planned.choice, strict=True))
    now = dict(zip(effect.categories, effect.choice, strict=True))
    return {name: (before[name], now[name]) for name in now if name in before and before[name] != now[name]}


def _experts(
    plan: PublishedPlan, registry: Registry, effect: Assignment, moves: Mapping[str, tuple[str, str]]
) -> Iterator[Consequence]:
    for name in registry.expert_names:
        if name not in plan.assignment.experts:
            yield _added(name, registry, effect)
    for name in plan.assignment.experts:
        if name not in registry.expert_names:
            yield _removed(name, moves)
    made_for = _made_for(plan)
    for spec in registry.experts:
        planned = made_for is not None and spec.name in plan.assignment.experts
        then = made_for.experts.get(spec.name, {}) if planned and made_for else {}
        if changed := changed_fields(then, spec):
            sentence = (
                f"expert {spec.name!r}: {', '.join(changed)} changed since the plan was made; the quality that was "
                "measured before stays in use. Run `coe score` and `coe plan` again"
            )
            yield Consequence("expert_changed", spec.name, sentence, replan=True)


def _added(name: str, registry: Registry, effect: Assignment) -> Consequence:
    own = [category for category, expert in zip(effect.categories, effect.choice, strict=True) if expert == name]
    routed = f"it answers {', '.join(own)}, as experts.yaml says" if own else "nothing is routed to it"
    rate = registry.policy.exploration.rate
    explored = f", and exploration tries it (rate {rate:g})" if rate else ""
    return Consequence(
        "expert_added",
        name,
        f"expert {name!r} is not in the plan: clients can request it by name, {routed}{explored}. For more, run "
        "`coe score` and `coe plan`",
        replan=True,
    )


def _removed(name: str, moves: Mapping[str, tuple[str, str]]) -> Consequence:
    own = [f"{category} goes to {now!r}" for category, (before, now) in moves.items() if before == name]
    if not own:
        return Consequence("expert_removed", name, f"expert {name!r} is gone; it served no category that is declared")
    advice = ". Run `coe plan` to share out its categories anew"
    return Consequence("expert_removed", name, f"expert {name!r} is gone: {', '.join(own)}{advice}", replan=True)


def _categories(plan: PublishedPlan, registry: Registry, effect: Assignment) -> Iterator[Consequence]:
    planned, made_for = plan.assignment.categories, _made_for(plan)
    then = made_for.categories if made_for else {}
    now = Dependencies.of(registry).categories
    serves = dict(zip(effect.categories, effect.choice, strict=True))
    for name in registry.category_names:
        if name not in planned:
            same = [old for old in planned if old not in now and then.get(old) == now[name]]
            renamed = f" It has the description of {same[0]!r}: a renamed category is a new one." if same else ""
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
                f"category {name!r} has another description since the plan was made; {serves[name]!r} goes on to "
                "answer it",
            )
    for name in planned:
        if name not in now:
            yield Consequence("category_removed", name, f"category {name!r} is gone; its part of the plan is unused")


def _pins(plan: PublishedPlan, registry: Registry, effect: Assignment) -> Iterator[Consequence]:
    then, now = pins_then(plan, registry), registry.assignment
    serves = dict(zip(effect.categories, effect.choice, strict=True))
    for name in registry.category_names:
        before, pin = then.get(name), now.get(name)
        if before == pin or name not in plan.assignment.categories:
            continue
        if name == GENERAL:
            was = f", no longer {before!r}" if before else ""
            sentence = f"the general expert is {pin!r} now{was}: unsure requests go to it at once"
            yield Consequence("general_changed", name, sentence, replan=True)
        elif pin is not None:
            was = f"no longer {before!r}" if before else "no longer planned"
            sentence = f"category {name!r} is pinned to {pin!r} now, {was}: it answers at once"
            yield Consequence("pin_changed", name, sentence, replan=True)
        else:
            sentence = f"category {name!r} is no longer pinned to {before!r}: {serves[name]!r} is the best by the plan"
            yield Consequence("pin_changed", name, sentence, replan=True)


def _uses(plan: PublishedPlan, record: PlanRecord, registry: Registry, effect: Assignment) -> Iterator[Consequence]:
    now, problem = declared_uses(registry), record.problem
    limited = {USE_OF_ROW[row] for row in problem.budget.rows() if row in USE_OF_ROW}
    for column, name in enumerate(registry.expert_names):
        if name not in problem.experts:
            continue
        old = problem.experts.index(name)
        changes, binding = [], False
        for use, said in _USES.items():
            before, after = (_at(getattr(uses, use), place) for uses, place in ((problem.uses, old), (now, column)))
            if before != after:
                changes.append(f"{said} {_number(before)} -> {_number(after)}")
                binding = binding or use in limited
        if changes:
            price = _price(plan.assignment, effect, name)
            free = "" if binding else "; no limit of the plan depends on it"
            sentence = f"expert {name!r}: {', '.join(changes)}{price}{free}"
            yield Consequence("expert_use_changed", name, sentence, replan=binding)


def _price(planned: Assignment, effect: Assignment, name: str) -> str:
    if name not in planned.experts:
        return ""
    before = float(planned.price[planned.experts.index(name)])
    after = float(effect.price[effect.experts.index(name)])
    return "" if before == after else f"; its price in the plan {before:.4f} -> {after:.4f} (in quality)"


def _budget(record: PlanRecord, registry: Registry, effect: Assignment) -> Iterator[Consequence]:
    then, now = record.problem.budget.rows(), Budget(**registry.budget.model_dump()).rows()
    for row in Budget.__dataclass_fields__:
        before, after = then.get(row), now.get(row)
        if before != after:
            sentence = f"budget: {row} {_number(before)} -> {_number(after)}: the plan keeps to the former limit"
            yield Consequence("budget_changed", row, f"{sentence}. Run `coe plan`", replan=True)
    used = planned_use(_priced(record.problem, registry, effect), effect)
    for row, limit in now.items():
        if used.get(row, 0.0) > limit * (1 + ROUNDING):
            sentence = f"budget: the plan comes to {row} {used[row]:.4g}, above the limit of {limit:g}. Run `coe plan`"
            yield Consequence("budget_exceeded", row, sentence, replan=True)


def _priced(problem: Problem, registry: Registry, effect: Assignment) -> Problem:
    """The assignment in effect as a problem without limits; a category that the plan does not know has no weight."""
    weights = dict(zip(problem.categories, problem.weights.tolist(), strict=True))
    mass = np.array([weights.get(name, 0.0) for name in effect.categories])
    quality = np.where(np.isfinite(effect.quality), effect.quality, 0.0)
    mass = mass / mass.sum() if mass.sum() > 0 else np.full(len(mass), 1 / len(mass))
    return replace(
        problem,
        categories=effect.categories,
        experts=effect.experts,
        quality=quality,
        weights=mass,
        uses=declared_uses(registry),
        budget=Budget(),
    )


def _made_for(plan: PublishedPlan) -> Dependencies | None:
    return None if plan.record is None else plan.record.dependencies


def _at(use: Sequence[float] | np.ndarray | None, place: int) -> float | None:
    if use is None or not np.isfinite(use[place]):
        return None
    return float(use[place])


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
