"""Adapts a published plan to the current experts.yaml, and reports the consequences of each difference.

The result is the effective plan. `coe.artifacts.active_state` computes it for the gateway and for jobs. The module is
pure: it reads no file. The rules are:

- A declared expert that is not in the plan serves no category until it is scored, except by pins and exploration.
- The categories of an expert that is no longer declared go to the best remaining expert.
- A recipe arm that is not in the plan, or whose members changed, is selected by pins only.
- A category that is not in the plan goes to its pinned expert, or else to the expert of `general`.
- Prices of experts are computed from the declared uses; prices of arms stay as planned.
- An arm stays if its recipe still declares the planned steps, and for a chain or fuse the planned instruction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from coe.core import GENERAL
from coe.errors import ArtifactError
from coe.planning.assignment import Assignment
from coe.planning.consequences import Consequence, consequences
from coe.planning.plan import runner_up
from coe.planning.plan_file import PublishedPlan, planned_pins
from coe.planning.prices import SHARE_DUAL_PREFIX
from coe.planning.problem import USE_OF_ROW, Array
from coe.planning.score_table import align
from coe.recipes.policy_file import NO_POLICIES, ArmPolicies
from coe.registry import Registry


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


def effective_plan(plan: PublishedPlan, registry: Registry) -> EffectivePlan:
    """Apply a published plan to a declaration. Without differences the assignment is the published one.

    Raises ArtifactError, with the remedy, if none of the plan's categories or experts is declared any more.
    """
    check_overlap(plan, registry)
    assignment = _AssignmentBuilder(plan, registry).build()
    arms, policies = plan.arms(registry), NO_POLICIES
    if plan.policies is not None:
        policies = plan.policies.only(arms)
    return EffectivePlan(assignment, consequences(plan, registry, assignment), policies.over(registry.category_names))


def check_overlap(plan: PublishedPlan, registry: Registry) -> None:
    """Raise ArtifactError if none of the plan's categories or experts is declared."""
    planned = {"categories": plan.assignment.categories, "experts": plan.assignment.experts}
    declared = {"categories": registry.category_names, "experts": registry.expert_names}
    for kind, names in planned.items():
        if not set(names) & set(declared[kind]):
            raise ArtifactError(
                f"plan {plan.version} knows none of the {kind} in experts.yaml (it knows {', '.join(names)}); "
                "run `coe score` and `coe plan` again, or `coe plan --forget` to go back to the declared assignment"
            )


def reprice(plan: PublishedPlan, registry: Registry) -> Array:
    """Return the prices by the plan's duals and the current uses, shape (n_categories, n_columns) of the declaration.

    An expert of unknown use gets the largest use. Three kinds of prices keep their published value: prices that are
    equal up to rounding, so that an unchanged declaration gives the published assignment; prices of arms; and all
    prices if the plan has no record, because the measured uses are then unknown.
    """
    assignment, uses = plan.assignment, plan.uses(registry, registry.category_names)
    names, arms = registry.expert_names, plan.arms(registry)
    price = np.zeros((len(registry.categories), len(names)))
    for row, dual in assignment.duals.items():
        if row in USE_OF_ROW:
            use = getattr(uses, USE_OF_ROW[row])
            price += dual * np.where(np.isfinite(use), use, np.nanmax(use, initial=0.0))
    price += [assignment.duals.get(f"{SHARE_DUAL_PREFIX}{name}", 0.0) for name in names]
    price[:, np.isin(names, assignment.experts) & ~np.isin(names, assignment.hosted)] = 0.0
    known = assignment.categories, assignment.experts
    before = align(assignment.price, known, (registry.category_names, (*names, *arms)), missing=np.nan)
    price = np.hstack((price, np.zeros((len(price), len(arms)))))
    is_arm = np.arange(len(names) + len(arms)) >= len(names)
    is_equal = np.isclose(price, before, rtol=1e-9, atol=1e-12) | (plan.record is None) | is_arm
    return np.where(is_equal & np.isfinite(before), before, price)


class _AssignmentBuilder:
    """Builds the effective assignment category by category. All tables are over the declared names."""

    def __init__(self, plan: PublishedPlan, registry: Registry) -> None:
        self._plan, self._registry = plan.assignment, registry
        self._experts = (*registry.expert_names, *plan.arms(registry))
        self._price = reprice(plan, registry)
        self._planned_pins = planned_pins(plan, registry)
        self._general = self._general_expert()
        planned, record = plan.assignment, plan.record
        known, names = (planned.categories, planned.experts), (registry.category_names, self._experts)
        self._quality = align(planned.quality, known, names, missing=-np.inf)
        self._bounds = np.where(np.isfinite(self._quality), self._quality, np.nan)
        if record is not None:
            solved = record.problem.categories, record.problem.experts
            self._bounds = align(record.bounds, solved, names, missing=np.nan)
        self._is_new = np.array([name not in planned.experts for name in self._experts])
        unmeasured = np.zeros(planned.quality.shape)
        if planned.unmeasured is not None:
            unmeasured = planned.unmeasured.astype(np.float64)
        self._unmeasured = align(unmeasured, known, names, missing=0.0) > 0
        self._unmeasured[:, len(registry.experts) :] = False  # recipes are never explored

    def build(self) -> Assignment:
        plan, categories = self._plan, self._registry.category_names
        quality = np.stack([self._quality_row(row, category) for row, category in enumerate(categories)])
        utility = quality - self._price
        choice = [self._choice(category, row) for category, row in zip(categories, utility, strict=True)]
        seconds = [runner_up(self._experts, utility[row], column) for row, column in enumerate(choice)]
        chosen = tuple(self._experts[column] for column in choice)
        unpinned = np.array([name in plan.categories and name not in self._registry.assignment for name in categories])
        unmeasured = unpinned[:, None] & (self._is_new[None, :] | self._unmeasured) & ~np.isfinite(quality)
        return Assignment(
            categories=categories,
            experts=self._experts,
            quality=quality,
            price=self._price,
            choice=chosen,
            runner_up=tuple(name for name, _ in seconds),
            margin=tuple(margin for _, margin in seconds),
            hosted=tuple(name for name in self._experts if name in plan.hosted or name in chosen),
            duals={
                row: dual
                for row, dual in plan.duals.items()
                if not row.startswith(SHARE_DUAL_PREFIX) or row.removeprefix(SHARE_DUAL_PREFIX) in self._experts
            },
            unmeasured=unmeasured if unmeasured.any() else None,
            residual=None if plan.residual is None else plan.residual.over(categories, self._experts),
        )

    def _general_expert(self) -> str:
        """Return the expert of `general`: the pinned one, or the planned one, or the default."""
        planned = dict(zip(self._plan.categories, self._plan.choice, strict=True)).get(GENERAL)
        pinned, names = GENERAL in self._registry.assignment, self._registry.expert_names
        return planned if planned in names and not pinned else self._registry.general_expert

    def _quality_row(self, row: int, category: str) -> Array:
        """Return the qualities of a category, -inf for the experts that may not serve it."""
        pin = self._registry.assignment.get(category)
        if category not in self._plan.categories:
            return self._pinned(row, pin or self._general)
        planned = np.asarray(self._quality[row])
        if pin == self._planned_pins.get(category) and np.isfinite(planned).any():
            return planned.copy()
        return self._unpinned(row) if pin is None else self._pinned(row, pin)

    def _pinned(self, row: int, expert: str) -> Array:
        column = self._experts.index(expert)
        quality = np.full(len(self._experts), -np.inf)
        quality[column] = self._estimate(row, column)
        return quality

    def _unpinned(self, row: int) -> Array:
        """Allow the measured experts that the plan hosts, or else all measured ones."""
        measured = np.isfinite(self._bounds[row])
        hosted = measured & np.array([name in self._plan.hosted for name in self._experts])
        allowed = hosted if hosted.any() else measured
        if not allowed.any():
            return self._pinned(row, self._general)
        return np.where(allowed, self._bounds[row], -np.inf)

    def _estimate(self, row: int, column: int) -> float:
        """Return the quality of one cell: as measured, or else the mean of the category, the expert, or all cells."""
        for cells in (self._bounds[row, column], self._bounds[row], self._bounds[:, column], self._bounds):
            known = np.asarray(cells)[np.isfinite(cells)]
            if known.size:
                return float(known.mean())
        return 1.0

    def _choice(self, category: str, utility: Array) -> int:
        """Return the planned expert, unless it may not serve the category any more or another one became better."""
        best = int(utility.argmax())
        if category not in self._plan.categories:
            return best
        row = self._plan.categories.index(category)
        planned = self._plan.choice[row]
        column = self._experts.index(planned) if planned in self._experts else best
        overtaken = self._plan.margin[row] >= 0 and utility[best] > utility[column]
        return best if overtaken or not np.isfinite(utility[column]) else column
