"""The plan in effect: a published plan under the present experts.yaml, and the consequences of what differs. Pure.

An expert that the plan does not know serves no category until it is scored; exploration and pins reach it. The
categories of an expert that is gone go to the best of the others, which is their runner-up. Prices follow the declared
uses. A category that the plan does not know goes to its pin or to the general expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coe.errors import ArtifactError
from coe.mapping.assignment import Assignment
from coe.mapping.consequences import Consequence, consequences
from coe.mapping.declaration import declared_uses
from coe.mapping.plan import runner_up
from coe.mapping.problem import USE_OF_ROW, Array
from coe.mapping.published import PublishedPlan, pins_then
from coe.registry import Registry

SHARE = "max_share:"
"""Prefix of the dual of an expert's share."""


@dataclass(frozen=True, slots=True, eq=False)
class PlanInEffect:
    """The `assignment` over the declared categories and experts, and what differs from the plan as it was made."""

    assignment: Assignment
    consequences: tuple[Consequence, ...] = ()


def plan_in_effect(plan: PublishedPlan, registry: Registry) -> PlanInEffect:
    """Apply a published plan to a declaration; where nothing differs the assignment is the published one.

    Raises ArtifactError, with the remedy, where no planned category or no planned expert is declared any more.
    """
    check_meaningful(plan, registry)
    assignment = _Effect(plan, registry).assignment()
    return PlanInEffect(assignment, consequences(plan, registry, assignment))


def check_meaningful(plan: PublishedPlan, registry: Registry) -> None:
    """Raises ArtifactError where nothing of the plan is declared any more."""
    planned = {"categories": plan.assignment.categories, "experts": plan.assignment.experts}
    declared = {"categories": registry.category_names, "experts": registry.expert_names}
    for what, names in planned.items():
        if not set(names) & set(declared[what]):
            raise ArtifactError(
                f"plan {plan.version} knows none of the {what} in experts.yaml (it knows {', '.join(names)}); "
                "run `coe score` and `coe plan` again, or `coe plan --forget` to go back to the declared assignment"
            )


def repriced(assignment: Assignment, registry: Registry) -> dict[str, float]:
    """The price of each declared expert by the plan's duals and the uses that are declared now.

    An expert of unknown use counts as the one that uses most. A price that comes out the same is left as it is, to the
    last digit.
    """
    uses = declared_uses(registry)
    price = np.zeros(len(registry.experts))
    for row, dual in assignment.duals.items():
        if row in USE_OF_ROW:
            price += dual * _known(getattr(uses, USE_OF_ROW[row]))
    shares = [assignment.duals.get(f"{SHARE}{name}", 0.0) for name in registry.expert_names]
    found = dict(zip(registry.expert_names, (price + np.array(shares)).tolist(), strict=True))
    for name, before in zip(assignment.experts, assignment.price.tolist(), strict=True):
        if name in found and (name not in assignment.hosted or np.isclose(found[name], before, rtol=1e-9, atol=1e-12)):
            found[name] = before
    return found


def _known(use: Array) -> Array:
    return np.where(np.isfinite(use), use, np.nanmax(use, initial=0.0))


class _Effect:
    """The rows of the plan in effect, category by category."""

    def __init__(self, plan: PublishedPlan, registry: Registry) -> None:
        self._plan, self._registry = plan.assignment, registry
        self._experts = registry.expert_names
        self._price = np.array(list(repriced(plan.assignment, registry).values()))
        self._pins_then = pins_then(plan, registry)
        made, record = plan.assignment, plan.record
        self._quality = _onto(made.quality, made.categories, made.experts, registry, nothing=-np.inf)
        self._bounds = np.where(np.isfinite(self._quality), self._quality, np.nan)
        if record is not None:
            problem = record.problem
            self._bounds = _onto(record.bounds, problem.categories, problem.experts, registry, nothing=np.nan)
        self._new = np.array([name not in plan.assignment.experts for name in self._experts])
        untried = np.zeros(made.quality.shape) if made.unmeasured is None else made.unmeasured.astype(np.float64)
        self._untried = _onto(untried, made.categories, made.experts, registry, nothing=0.0) > 0
        self._open = np.zeros(self._quality.shape[0], dtype=np.bool_)

    def assignment(self) -> Assignment:
        plan, categories = self._plan, self._registry.category_names
        quality = np.stack([self._row(row, category) for row, category in enumerate(categories)])
        choice = [self._choice(category, quality[row]) for row, category in enumerate(categories)]
        seconds = [runner_up(self._experts, quality[row] - self._price, column) for row, column in enumerate(choice)]
        chosen = tuple(self._experts[column] for column in choice)
        unmeasured = self._open[:, None] & (self._new[None, :] | self._untried) & ~np.isfinite(quality)
        return Assignment(
            categories=categories,
            experts=self._experts,
            quality=quality,
            price=self._price,
            choice=chosen,
            runner_up=tuple(name for name, _ in seconds),
            margin=tuple(margin for _, margin in seconds),
            hosted=tuple(name for name in self._experts if name in plan.hosted or name in chosen),
            duals={row: dual for row, dual in plan.duals.items() if self._holds(row)},
            unmeasured=unmeasured if unmeasured.any() else None,
        )

    def _holds(self, row: str) -> bool:
        return not row.startswith(SHARE) or row.removeprefix(SHARE) in self._experts

    def _row(self, row: int, category: str) -> Array:
        """Qualities of a category, -inf for the experts that may not serve it; notes whether it is open to others."""
        pin, general = self._registry.assignment.get(category), self._registry.general_expert
        planned = np.asarray(self._quality[row])
        if category not in self._plan.categories:
            return self._pinned(row, pin or general)
        same = pin == self._pins_then.get(category) and np.isfinite(planned).any()
        self._open[row] = pin is None
        if same:
            return planned.copy()
        return self._opened(row, general) if pin is None else self._pinned(row, pin)

    def _pinned(self, row: int, expert: str) -> Array:
        column = self._experts.index(expert)
        found = np.full(len(self._experts), -np.inf)
        found[column] = self._guess(row, column)
        return found

    def _opened(self, row: int, general: str) -> Array:
        """The measured experts, of which those that the plan does not host serve only where it hosts no other."""
        measured = np.isfinite(self._bounds[row])
        hosted = measured & np.array([name in self._plan.hosted for name in self._experts])
        allowed = hosted if hosted.any() else measured
        if not allowed.any():
            return self._pinned(row, general)
        return np.where(allowed, self._bounds[row], -np.inf)

    def _guess(self, row: int, column: int) -> float:
        """The quality of one cell: as measured, else the category's mean, the expert's, or that of all."""
        for cells in (self._bounds[row, column], self._bounds[row], self._bounds[:, column], self._bounds):
            known = np.asarray(cells)[np.isfinite(cells)]
            if known.size:
                return float(known.mean())
        return 1.0

    def _choice(self, category: str, quality: Array) -> int:
        """The planned expert, unless it may not serve the category now or another became better."""
        value = quality - self._price
        best = int(value.argmax())
        if category not in self._plan.categories:
            return best
        place = self._plan.categories.index(category)
        planned = self._plan.choice[place]
        column = self._experts.index(planned) if planned in self._experts else best
        overtaken = self._plan.margin[place] >= 0 and value[best] > value[column]
        return best if overtaken or not np.isfinite(value[column]) else column


def _onto(
    table: Array, categories: Sequence[str], experts: Sequence[str], registry: Registry, *, nothing: float
) -> Array:
    """A table over a plan's categories and experts, over the declared ones; `nothing` in a cell that it lacks."""
    found = np.full((len(registry.categories), len(registry.experts)), nothing)
    rows = [(new, categories.index(name)) for new, name in enumerate(registry.category_names) if name in categories]
    columns = [(new, experts.index(name)) for new, name in enumerate(registry.expert_names) if name in experts]
    for row, old_row in rows:
        for column, old_column in columns:
            found[row, column] = table[old_row, old_column]
    return found
