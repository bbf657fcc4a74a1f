"""A plan as `coe plan` and `coe retrain` publish it: the assignment, and all that it was solved from.

It is read whole: to route by it, to show it, to solve it again under another budget, and to compare it with the current
declaration.

A plan under the current experts.yaml: what of it still serves, and what an edit means until the next `coe plan`.

`coe.artifacts.active_state` computes this for the gateway and for jobs. The module is pure: it reads no file.
Qualities, uses and prices stay those of the plan. Only names follow the declaration:

- The categories of an expert that is no longer declared go to the best remaining expert.
- A declared expert that is not in the plan serves no category until it is planned, except by pins and exploration.
- A recipe serves while it is declared as it was planned; else it is selected by name only.
- A pin applies at once. A category that is not in the plan goes to the expert of `general`.

The gateway logs the consequences at start and on reload, `coe check` and `coe status` print them, and the admin API
returns them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import Field, InstanceOf, TypeAdapter

from coe.core import GENERAL
from coe.errors import ArtifactError, DataError
from coe.planning.assignment import Assignment
from coe.planning.problem import BUDGET_ROWS, Problem
from coe.planning.residual import Residual
from coe.planning.score_table import Array, ScoreTable, align
from coe.planning.uses import MeasuredUses
from coe.recipes.policy import NO_POLICIES, RECIPES_FILE, ArmPolicies
from coe.registry import Registry

PLAN_FILE, TRAFFIC_FILE = "plan.json", "traffic.npy"
RESIDUAL_FILE, MEASURED_FILE = "residual.npz", "measured.npz"
ANSWER_FIELDS = ("model", "runtime", "base_url", "base_urls", "adapter", "system_prompt", "parameters", "options")
"""Fields of an expert that affect its answers, and so its measured quality."""
PLANNED_FIELDS = (*ANSWER_FIELDS, "prices", "active_parameters_b", "latency_ms", "memory_gb")
"""Fields of an expert that a plan depends on."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Mean rating of an expert in a category: the expected one, and the one found in a number of `ratings`."""

    category: str
    expected: float
    found: float
    ratings: int


Demoted = Mapping[str, tuple[Drop, ...]]
"""Drops by expert whose found ratings stand in place of the scores, until the expert is measured again."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """An assignment and its origin.

    - `problem`: the planning problem, and `table`: the scores behind its qualities, over the same names.
    - `source`: origin of the scores.
    - `estimate`, `error`: the estimated qualities by category and expert, and their standard errors.
    - `measured`, `feedback`: the parts of the table from scores and from feedback.
    - `reassigned`: categories whose expert feedback has changed since the scores were measured, with the time (Unix
      seconds) of the request that showed it.
    - `demoted`: experts that got worse, by an alarm.
    - `measured_uses`: tokens and latencies behind the problem's uses.
    - `measured_at`: the time of each expert's oldest score (Unix seconds), where it is known.
    - `pins`, `declared`: the pins and the `declared_digests` of the declaration that the plan was made for.
    - `value_of_expert`: see `marginal_values`.
    - `traffic`: the sample of posteriors that the prices are fitted to, shape (n_requests, n_categories); None for
      prices of pure categories.
    - `unused`: the measured prompts as a residual that is not used, which retraining may fit again.
    - `policies`: the arms of recipes among the columns.
    """

    assignment: Assignment
    problem: Problem
    table: ScoreTable
    source: str
    estimate: Array
    error: Array
    measured: ScoreTable | None = None
    feedback: ScoreTable | None = None
    reassigned: Mapping[str, float] = field(default_factory=dict)
    demoted: Demoted = field(default_factory=dict)
    measured_uses: MeasuredUses = field(default_factory=MeasuredUses.nothing)
    measured_at: Mapping[str, float] = field(default_factory=dict)
    pins: Mapping[str, str] = field(default_factory=dict)
    declared: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    value_of_expert: Mapping[str, float | None] = field(default_factory=dict)
    traffic: Annotated[Array | None, Field(exclude=True)] = None
    unused: Annotated[InstanceOf[Residual] | None, Field(exclude=True)] = None
    policies: Annotated[InstanceOf[ArmPolicies], Field(exclude=True)] = NO_POLICIES
    format: Literal[1] = 1

    def __post_init__(self) -> None:
        shape = self.problem.quality.shape
        if not self.table.count.shape == self.assignment.quality.shape == shape:
            raise DataError(f"scores of shape {self.table.count.shape}, not {shape}")

    def arms(self, registry: Registry) -> tuple[str, ...]:
        """Return the arms of recipes that are declared as the plan has them: with the same steps, and no smaller bound.

        The columns of chains and fuses follow the others, as in the columns of a plan.
        """
        bounds = {recipe.name: recipe.max_loss for recipe in registry.declared_recipes}
        found = list[str]()
        for arm in registry.recipe_arms:
            if arm.name in self.assignment.experts and self.policies.has(arm):
                bound, fitted = bounds[arm.name], self.policies.by_arm.get(arm.name)
                tested = None if fitted is None else fitted.max_loss
                if bound is None or (tested is not None and tested <= bound):
                    found.append(arm.name)
        return tuple(sorted(found, key=lambda name: name in self.policies.written))

    def save(self, folder: Path) -> None:
        """Write the files into an existing folder."""
        (folder / PLAN_FILE).write_bytes(_JSON.dump_json(self))
        for name, residual in ((RESIDUAL_FILE, self.assignment.residual), (MEASURED_FILE, self.unused)):
            if residual is not None:
                (folder / name).write_bytes(residual.to_bytes())
        if self.traffic is not None:
            np.save(folder / TRAFFIC_FILE, self.traffic.astype(np.float16))
        if self.policies.steps:
            (folder / RECIPES_FILE).write_bytes(self.policies.to_json())

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """Read the files that `save` writes. Raises ArtifactError."""
        traffic, recipes = folder / TRAFFIC_FILE, folder / RECIPES_FILE
        try:
            plan = _JSON.validate_json((folder / PLAN_FILE).read_bytes())
            plan = replace(plan, traffic=np.load(traffic).astype(np.float64) if traffic.exists() else None)
        except (OSError, TypeError, ValueError, DataError) as error:  # pydantic's error is a ValueError
            remedy = "make it again with `coe plan`"
            raise ArtifactError(f"{folder / PLAN_FILE}: cannot be read ({error}); {remedy}") from None
        files = folder / RESIDUAL_FILE, folder / MEASURED_FILE
        residual, unused = (Residual.from_bytes(one.read_bytes()) if one.exists() else None for one in files)
        policies = ArmPolicies.from_json(recipes.read_bytes()) if recipes.exists() else NO_POLICIES
        return replace(plan, assignment=replace(plan.assignment, residual=residual), unused=unused, policies=policies)


_JSON = TypeAdapter(Plan)


def round_traffic(traffic: NDArray[np.floating]) -> Array:
    """Round to the precision of the saved file, so that solving again gives the same prices."""
    return traffic.astype(np.float16).astype(np.float64)


def declared_digests(registry: Registry) -> dict[str, dict[str, str]]:
    """Return by expert digests of its PLANNED_FIELDS, so that no secret is stored."""
    values = {spec.name: spec.model_dump(mode="json", include=set(PLANNED_FIELDS)) for spec in registry.experts}
    return {
        expert: {
            name: hashlib.sha256(orjson.dumps(fields[name], option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]
            for name in PLANNED_FIELDS
        }
        for expert, fields in values.items()
    }


@dataclass(frozen=True, slots=True)
class Consequence:
    """One difference, about the expert, category or budget row `name`.

    `kind` is such as `expert_added` or `budget_changed`; of the router and the gate, `router` and `gate`.
    `sentence` describes the difference and its consequence. `replan`: `coe plan` should be run again.
    """

    kind: str
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


def effective_plan(plan: Plan, registry: Registry, categories: tuple[str, ...] = ()) -> EffectivePlan:
    """Apply a plan to a declaration. Without differences the assignment is the planned one.

    `categories` are the declared ones in another order, as those of a router.
    Raises ArtifactError, with the remedy, if none of the plan's categories or experts is declared any more.
    """
    for kind, known, names in (
        ("categories", plan.problem.categories, registry.category_names),
        ("experts", plan.problem.experts, registry.expert_names),
    ):
        if not set(known) & set(names):
            raise ArtifactError(
                f"the plan knows none of the {kind} in experts.yaml (it knows {', '.join(known)}); "
                "run `coe score` and `coe plan` again, or `coe plan --forget` to go back to the declared assignment"
            )
    assignment = _assignment(plan, registry, categories or registry.category_names)
    policies = plan.policies.only(plan.arms(registry)).over(assignment.categories)
    return EffectivePlan(assignment, tuple(_consequences(plan, registry, assignment)), policies)


def _assignment(plan: Plan, registry: Registry, categories: tuple[str, ...]) -> Assignment:
    """Return the assignment in effect. Where none of a category's hosted experts is left, those of the problem serve;
    the chosen one is the planned one, unless it may not serve any more."""
    planned, chosen = plan.assignment, dict(zip(plan.assignment.categories, plan.assignment.choice, strict=True))
    known = planned.categories, planned.experts
    experts = (*registry.expert_names, *plan.arms(registry))
    names = categories, experts

    def over(values: Array, missing: float) -> Array:
        return align(values, known, names, missing=missing)

    quality, measured = over(planned.quality, -np.inf), over(plan.problem.quality, -np.inf)
    quality = np.where(np.isfinite(quality).any(axis=1, keepdims=True), quality, measured)
    level = float(np.mean(measured[np.isfinite(measured)])) if np.isfinite(measured).any() else 1.0
    general = chosen.get(GENERAL)
    if general not in registry.expert_names or GENERAL in registry.assignment:
        general = registry.general_expert
    price, choice = over(planned.price, 0.0), []
    for row, category in enumerate(categories):
        pin, is_served = registry.assignment.get(category), np.isfinite(quality[row]).any()
        pin = pin or (None if is_served else general)
        if pin is not None and not (is_served and pin == plan.pins.get(category)):
            own = measured[row, experts.index(pin)]  # an expert without a score counts as one of mean quality
            quality[row] = np.where(np.array(experts) == pin, own if np.isfinite(own) else level, -np.inf)
        best, expert = experts[int((quality[row] - price[row]).argmax())], chosen.get(category)
        choice.append(expert if expert in experts and np.isfinite(quality[row, experts.index(expert)]) else best)
    before = np.zeros(planned.quality.shape) if planned.unmeasured is None else planned.unmeasured.astype(np.float64)
    untried = (over(before, 1.0) > 0) & ~np.isfinite(quality)
    untried[:, len(registry.expert_names) :] = False  # recipes are never explored
    untried[[name not in known[0] or name in registry.assignment for name in categories]] = False
    explored = planned.exploration
    if explored is not None:
        explored = np.maximum(over(explored, 0.0) * (np.isfinite(quality) | untried), untried / len(experts))
    return Assignment(
        *names,
        quality,
        price,
        tuple(choice),
        tuple(name for name in experts if name in planned.hosted or name in choice),
        planned.duals,
        untried if untried.any() else None,
        explored,
        None if planned.residual is None else planned.residual.over(*names),
    )


def _consequences(plan: Plan, registry: Registry, effective: Assignment) -> Iterator[Consequence]:
    planned, now = plan.assignment, dict(zip(effective.categories, effective.choice, strict=True))
    explores = registry.policy.exploration.rate > 0
    scoring = dict.fromkeys(registry.expert_names, "coe score")
    for recipe in registry.declared_recipes:
        scoring[recipe.name] = f"coe score --recipe {recipe.name}" if recipe.writes else "coe score"
    for name, command in scoring.items():
        is_expert = name in registry.expert_names
        if name not in planned.experts or name not in effective.experts:
            categories = ", ".join(category for category, expert in now.items() if expert == name)
            routed = f"it answers {categories}, as experts.yaml declares" if categories else "nothing is routed to it"
            routed += " except by exploration" if is_expert and explores and not categories else ""
            what, declared = ("expert", "") if is_expert else ("recipe", " as it is declared")
            sentence = f"{what} {name!r} is not in the plan{declared}: clients can request it by name, and {routed}"
            yield Consequence(f"{what}_added", name, f"{sentence}. For more, run `{command}` and `coe plan`", True)
    for name, fields in declared_digests(registry).items():
        then_fields = plan.declared.get(name, fields)
        if name in planned.experts and (changed := [one for one in fields if then_fields.get(one) != fields[one]]):
            remedy = "`coe score` and `coe plan`" if set(changed) & set(ANSWER_FIELDS) else "`coe plan`"
            sentence = f"expert {name!r}: {', '.join(changed)} changed; the plan stays as it is. Run {remedy} again"
            yield Consequence("expert_changed", name, sentence, replan=True)
    then = dict(zip(planned.categories, planned.choice, strict=True))
    for name in planned.experts:
        if name not in effective.experts:
            moves = [f"{category} goes to {now[category]!r}" for category in now if then.get(category) == name]
            consequence = f": {', '.join(moves)}. Run `coe plan` again" if moves else "; it served no declared category"
            kind = "recipe_removed" if name in plan.policies.steps else "expert_removed"
            what = "as it was planned" if kind == "recipe_removed" else "any more"
            sentence = f"{kind.removesuffix('_removed')} {name!r} is not declared {what}{consequence}"
            yield Consequence(kind, name, sentence, replan=bool(moves))
    for name in registry.category_names:
        before, pin = plan.pins.get(name), registry.assignment.get(name)
        if name not in then:
            sentence = f"category {name!r} is not in the plan: {now[name]!r} answers it"
            remedy = "Run `coe score` with probes of it, and `coe plan`"
            yield Consequence("category_added", name, f"{sentence}. {remedy}", replan=True)
        elif before != pin:
            pinned = f"is no longer pinned to {before!r}" if pin is None else f"is pinned to {pin!r} now"
            sentence = f"category {name!r} {pinned}; {now[name]!r} answers it. Run `coe plan` again"
            yield Consequence("pin_changed", name, sentence, replan=True)
    for name in then:
        if name not in registry.category_names:
            sentence = f"category {name!r} is no longer declared; its part of the plan is unused"
            yield Consequence("category_removed", name, sentence)
    limits = registry.budget.model_dump(exclude_none=True)
    for row in BUDGET_ROWS:
        if (old := plan.problem.budget.get(row)) != (new := limits.get(row)):
            sentence = f"budget: {row} {old} -> {new}: the plan keeps the former limit. Run `coe plan` again"
            yield Consequence("budget_changed", row, sentence, replan=True)
