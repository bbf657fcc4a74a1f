"""Solves a plan from measured scores, the declaration and the feedback in the plan in use.

Quality is the posterior mean of the measured scores. In categories that `coe retrain` has reassigned, feedback is
merged with the scores. Experts without scores, and categories pinned to them, are left out and reported.

Solves plans under the declared budget, for the mix of requests in an experience.

experts.yaml gives what each expert uses, the budget and the pinned categories.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.artifacts.manifest import ROUTER
from coe.artifacts.store import ArtifactStore
from coe.errors import ArtifactError, ConfigError, DataError
from coe.learning.experience import Experience
from coe.learning.logged_uses import LoggedUses
from coe.learning.refit import Refit, demoted_cells, merged, still_demoted, with_demoted
from coe.measuring.quality import Difference, read_quality
from coe.planning.assignment import Assignment
from coe.planning.plan import Plan, declared_digests, round_traffic
from coe.planning.problem import Problem
from coe.planning.residual import Residual
from coe.planning.score_table import Array, ScoreTable, tabulate_partly
from coe.planning.solver import marginal_values, planned_quality, planned_use, solve
from coe.planning.uses import MeasuredUses, declared_uses
from coe.recipes.fitting.columns import RecipeColumns, recipe_columns
from coe.recipes.policy import ArmPolicies
from coe.registry import Registry, yaml_source
from coe.settings import Settings
from coe.terminal import note_if_slow, print_error

LEVEL, MARGIN = 0.02, 0.001
"""Expected quality that a cheaper expert may lack where the scores do not show that the other is better, and by how
much the other then counts as worse: more than the tolerance of the solver."""


def credited(quality: Array, variance: Array, cost: Array) -> Array:
    """Return the quality that a plan credits: its mean, but for a dear expert less than that of a cheaper level one.

    An expert is level with the best one of its category if it is within LEVEL of it, and within one standard error of
    the difference. So of level experts the cheapest serves. All arrays have shape (n_categories, n_experts); quality is
    -inf where an expert may not serve.
    """
    rows = np.arange(len(quality))
    best = quality.argmax(axis=1)
    gap = quality[rows, best][:, None] - quality
    level = (gap <= LEVEL) & (gap**2 <= variance + variance[rows, best][:, None])
    cheapest = np.where(level, np.nan_to_num(cost, nan=np.inf), np.inf).argmin(axis=1)
    is_dearer = cost > cost[rows, cheapest][:, None]
    return np.where(is_dearer, np.minimum(quality, quality[rows, cheapest][:, None] - MARGIN), quality)


def declared_problem(
    registry: Registry,
    table: ScoreTable,
    *,
    quality: Array,
    weights: Array,
    variance: Array | None = None,
    measured_uses: MeasuredUses | None = None,
    recipes: RecipeColumns | None = None,
) -> Problem:
    """The problem of planning by `quality`, shape (m, k), under the declared budget; declared assignments are pins.

    `table` is over the declared categories (in any order) and experts; `weights` (m,) is the share of each category.
    Tokens and latency are the measured ones, where there are any. The last columns of the table are the arms of
    `recipes`. With the `variance` of the quality, of level experts the cheapest serves (`credited`).
    """
    pinned, recipes = quality.copy(), recipes or RecipeColumns()
    for row, category in enumerate(table.categories):
        if (expert := registry.assignment.get(category)) is not None:
            pinned[row, np.array(table.experts) != expert] = -np.inf
    experts = table.experts[: len(table.experts) - len(recipes.arms)]
    uses = declared_uses(registry, table.categories, experts, measured=measured_uses)
    joined = uses.joined(recipes.uses, len(recipes.arms))
    if variance is not None and joined.cost is not None:
        pinned = credited(pinned, variance, joined.cost)
    return Problem.of(
        table,
        quality=pinned,
        uses=joined,
        budget=registry.budget.model_dump(exclude_none=True),
        weights=weights,
        members=recipes.members,
    )


PRICE_SAMPLE_SIZE = 4000
"""Requests whose posteriors the prices are fitted to."""


@dataclass(frozen=True, slots=True, eq=False)
class BudgetSolver:
    """Solves plans for the requests of `experience` under the budget that `registry` declares.

    `measured_uses` are those of the plan in use, `recipes` its arms, and `residual` the one to plan with.
    """

    registry: Registry
    experience: Experience
    measured_uses: MeasuredUses = field(default_factory=MeasuredUses.nothing)
    recipes: RecipeColumns = field(default_factory=RecipeColumns)
    residual: Residual | None = None

    def __call__(self, table: ScoreTable, quality: Array) -> Assignment:
        """The plan of this quality, shape (m, k)."""
        problem = self._problem(table, quality)
        return solve(problem, traffic=self._traffic(problem), residual=self.residual)

    def plan(
        self, candidate: Assignment, refit: Refit, *, measured: ScoreTable | None, reassigned: Mapping[str, float]
    ) -> Plan:
        """The plan of a candidate, with the evidence behind it."""
        problem = self._problem(refit.table, candidate.quality)
        return Plan(
            candidate,
            problem,
            refit.table,
            f"the feedback on {int(self.experience.rated.sum())} requests",
            refit.quality,
            refit.table.error(pseudo_count=refit.weighting.pseudo_count),
            measured=measured,
            feedback=refit.feedback,
            reassigned=reassigned,
            measured_uses=self.measured_uses,
            pins=self.registry.assignment,
            declared=declared_digests(self.registry),
            value_of_expert=marginal_values(problem, candidate),
            traffic=self._traffic(problem),
        )

    def _problem(self, table: ScoreTable, quality: Array) -> Problem:
        weights = np.maximum(self.experience.posterior.sum(axis=0, dtype=np.float64), 1.0)
        uses, recipes = self.measured_uses, self.recipes
        return declared_problem(
            self.registry, table, quality=quality, weights=weights, measured_uses=uses, recipes=recipes
        )

    def _traffic(self, problem: Problem) -> Array | None:
        """A sample of posteriors; None where no price depends on traffic."""
        if not problem.budget.keys() - {"memory_gb"}:
            return None
        sample = np.random.default_rng(0).permutation(len(self.experience))[:PRICE_SAMPLE_SIZE]
        return round_traffic(self.experience.posterior[sample])


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """A solved plan with what it was measured on.

    The measured prompts have `prompts` (id and text), `labels` (n_prompts,), the index of the category, and `scores`
    (n_prompts, n_experts), NaN where missing. `left_out` are the parts of the declaration that the plan leaves out:
    `experts` without usable scores; `categories` pinned to one of these, which answers them; the number of prompts by
    category that is `undeclared`; `unprobed` categories, whose quality is estimated from the others. `unplanned` has
    the reason for each recipe that is left out.
    """

    plan: Plan
    prompts: Sequence[tuple[str, str]]
    labels: NDArray[np.int64]
    scores: Array
    left_out: Mapping[str, Any]
    unplanned: Mapping[str, str]


def difference_errors(plan: Plan) -> Array:
    """Standard error, by category and expert, of its quality less that of the chosen expert."""
    chosen = np.array(plan.problem.experts) == np.array(plan.assignment.choice)[:, None]
    return np.where(chosen, 0.0, np.hypot(plan.error, plan.error[chosen][:, None]))


def plan_basis(
    settings: Settings,
    registry: Registry,
    folder: Path,
    *,
    benchmark: str | None = None,
    before: Plan | None = None,
    logged: LoggedUses | None = None,
) -> Basis:
    """Solve a plan of the scored experts and the categories that they may serve.

    The feedback in the plan `before` is merged with the scores of the categories that it reassigned; experts that it
    demoted stay so until their scores are newer. The usage measured by `coe score` is merged with the `logged` usage.
    Enough logged requests of the router in use also give the weights of categories and the sample of traffic, in place
    of the probes. Raises DataError where no category can be planned, and ConfigError with the line of the budget if no
    plan keeps it.
    """
    data = read_quality(folder, benchmark=benchmark, only=registry.expert_names, partly=True)
    experts = tuple(name for name in registry.expert_names if name in data.models)
    pins = registry.assignment
    categories = tuple(name for name in registry.category_names if pins.get(name, experts[0]) in experts)
    rows = [row for row, category in enumerate(data.categories) if category in categories]
    if not rows:
        raise DataError(
            f"{folder}: no prompt is of a category that can be planned ({', '.join(categories) or 'none'}): "
            "run `coe score` with probes of these, for every expert that answers them"
        )
    labels, cells = data.labels(rows, categories), data.grid(rows, experts)
    member, scores = np.eye(len(categories))[labels], data.scores[cells]
    probed = MeasuredUses.of(categories, experts, member, {name: use[cells] for name, use in data.uses.items()})
    uses = probed if logged is None else probed.updated(_logged_tables(logged, probed, registry))
    whole = np.isfinite(scores).all(axis=1)
    with note_if_slow("fitting recipes"):
        recipes = recipe_columns(
            folder,
            data,
            registry,
            rows=np.array(rows)[whole].tolist(),
            experts=experts,
            categories=categories,
            probed=probed,
            expected=uses,
        )
    columns = (*experts, *recipes.arms)
    all_scores = np.hstack((scores, np.full((len(rows), len(recipes.arms)), np.nan)))
    if recipes.arms:
        all_scores[whole, len(experts) :] = recipes.scores
    demoted = still_demoted(before, data.measured_at) if before else {}
    table = with_demoted(tabulate_partly(categories, columns, member, all_scores), demoted)
    posterior = table.posterior()
    reassigned = {name: time for name, time in before.reassigned.items() if name in categories} if before else {}
    feedback = before.feedback.over(categories, columns) if before and before.feedback and reassigned else None
    quality, variance = posterior.mean, posterior.variance
    if recipes.arms:  # the quality that replay gave
        quality[:, len(experts) :] = recipes.quality
    if feedback is not None:
        both, moved = merged(table, feedback).posterior(), np.isin(categories, list(reassigned))[:, None]
        quality, variance = np.where(moved, both.mean, quality), np.where(moved, both.variance, variance)
    for cell, drop in demoted_cells(demoted, categories, columns):
        quality[cell] = min(quality[cell], drop.found)
    router = ArtifactStore(settings.artifacts, ROUTER).in_use() or ""
    mix = None if logged is None else logged.mix(categories, router=router)
    weights = np.maximum(member.sum(axis=0), 1.0) if mix is None else mix[0]
    problem = declared_problem(
        registry, table, quality=quality, weights=weights, variance=variance, measured_uses=uses, recipes=recipes
    )
    texts = [data.prompts[row] for row in rows]
    traffic = _traffic(settings, problem, texts, None if mix is None else mix[1])
    try:
        with note_if_slow("solving the plan"):
            assignment = solve(problem, traffic=traffic)
    except ConfigError as error:
        line = yaml_source.read(settings.config).at(("budget",))
        raise ConfigError(*(f"{line}: {problem}" for problem in error.problems)) from error
    plan = Plan(
        assignment,
        problem,
        table,
        f"{len(rows)} prompts of {folder.name}",
        quality,
        np.sqrt(variance),
        measured=table,
        feedback=feedback,
        reassigned=reassigned,
        demoted=demoted,
        measured_uses=uses,
        measured_at=data.measured_at,
        pins=pins,
        declared=declared_digests(registry),
        traffic=traffic,
        policies=ArmPolicies(categories, recipes.policies, recipes.written),
    )
    left_out = {
        "experts": (*data.unscored, *(name for name in data.models if name not in experts)),
        "categories": {name: pins[name] for name in registry.category_names if name not in categories},
        "undeclared": Counter(name for name in data.categories if name not in registry.category_names),
        "unprobed": [name for name, count in zip(categories, table.count.max(axis=1), strict=True) if not count],
    }
    prompts = list(zip([data.prompt_ids[row] for row in rows], texts, strict=True))
    return Basis(plan, prompts, labels, all_scores, left_out, recipes.left_out)


def _logged_tables(logged: LoggedUses, scored: MeasuredUses, registry: Registry) -> dict[str, ScoreTable]:
    """Return the logged tables by measure, without times of experts that share a device: these include waits of the
    plan then in use."""
    shared = np.array([registry.device_of(registry.expert(name)) is not None for name in scored.experts])
    tables = {name: one.over(scored.categories, scored.experts) for name, one in logged.tables(scored.experts).items()}
    times = tables["latency_ms"]
    return tables | {"latency_ms": replace(times, count=np.where(shared, 0.0, times.count))}


def _traffic(settings: Settings, problem: Problem, prompts: Sequence[str], logged: Array | None) -> Array | None:
    """The `logged` posteriors, or else those of a random sample of the prompts by the router in use; None where no
    price depends on them."""
    if not problem.budget.keys() - {"memory_gb"}:
        return None
    if logged is not None:
        return round_traffic(logged)
    from coe.artifacts.active_state import check_router, load_router

    try:
        router = load_router(*check_router(settings))
    except ArtifactError as error:
        print_error(f"note: prices are for pure categories, since the router cannot be used ({error})")
        return None
    sample = np.random.default_rng(0).permutation(len(prompts))[:PRICE_SAMPLE_SIZE]
    posteriors = np.stack([found.probabilities for found in router.predict([prompts[index] for index in sample])])
    return round_traffic(posteriors[:, [router.categories.index(name) for name in problem.categories]])


def compare_with_single_experts(plan: Plan) -> tuple[dict[str, Any], ...]:
    """Return rows that compare the plan (first row) with each single expert serving all planned categories.

    `cost` is in US dollars per thousand requests. `latency_ms` is null if it is unknown. Pins and limits are ignored
    for single experts. `less_plan` is the expert's quality minus the plan's.
    """
    problem, weights = plan.problem, plan.problem.weights
    used, quality = planned_use(problem, plan.assignment), planned_quality(problem, plan.assignment)

    def row(expert: str | None, mean: float, cost: float | None, latency: float | None) -> dict[str, Any]:
        known = latency if latency is not None and np.isfinite(latency) else None
        return {"expert": expert, "quality": mean, "cost": cost, "latency_ms": known}

    tables = plan.estimate, problem.use("mean_cost"), problem.use("mean_latency_ms")
    error = np.sqrt(weights**2 @ difference_errors(plan) ** 2)
    singles = zip(problem.experts, *((weights @ table).tolist() for table in tables), strict=True)
    return (
        row(None, quality, used.get("mean_cost"), used.get("mean_latency_ms")),
        *(
            row(*single) | {"less_plan": Difference(single[1] - quality, of_single).to_json()}
            for single, of_single in zip(singles, error.tolist(), strict=True)
        ),
    )
