"""Builds the problem of a plan from measured scores, the declaration and the feedback in the plan in use.

Quality is a lower confidence bound on the measured scores. In categories that `coe retrain` has reassigned, feedback is
merged with the scores. Experts without scores, and categories pinned to them, are left out and reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.artifacts.kinds import ROUTER
from coe.artifacts.store import ArtifactStore
from coe.errors import ArtifactError, DataError
from coe.foreground import note_if_slow
from coe.learning.logged_uses import LoggedUses
from coe.learning.refit import MAX_PSEUDO_COUNT, merged
from coe.measuring.quality import Quality, read_quality
from coe.planning import (
    Assignment,
    Dependencies,
    MeasuredUses,
    PlanEvidence,
    PlanInputs,
    Problem,
    planned_quality,
    planned_use,
    round_traffic,
)
from coe.planning.job.budget_solver import PRICE_SAMPLE_SIZE, declared_problem
from coe.planning.paired_scores import Difference
from coe.planning.score_table import ScoreTable, fit_pseudo_count, tabulate_partly
from coe.recipes.fitting.columns import RecipeColumns, recipe_columns
from coe.registry import Registry
from coe.settings import Settings
from coe.terminal import print_error


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The parts of a declaration that a plan leaves out.

    `experts` have no usable scores. `categories` are pinned to one of these, which
    answers them without the plan. `undeclared` counts prompts of categories that experts.yaml does not declare.
    `unprobed` are planned categories without a prompt, whose quality is estimated from the other categories.
    """

    experts: tuple[str, ...]
    categories: Mapping[str, str]
    undeclared: Mapping[str, int]
    unprobed: tuple[str, ...]

    @classmethod
    def of(cls, registry: Registry, data: Quality, table: ScoreTable) -> LeftOut:
        """Compare a declaration, its scores and the table that is planned on."""
        pinned = {name: registry.assignment[name] for name in registry.category_names if name not in table.categories}
        undeclared = Counter(name for name in data.categories if name not in registry.category_names)
        counts = dict(zip(table.categories, table.count.max(axis=1).tolist(), strict=True))
        unprobed = tuple(name for name, count in counts.items() if not count)
        without_expert = tuple(name for name in data.models if name not in table.experts)
        return cls((*data.unscored, *without_expert), pinned, dict(undeclared), unprobed)


def plan_basis(
    settings: Settings,
    registry: Registry,
    folder: Path,
    *,
    benchmark: str | None = None,
    deviations: float,
    evidence: PlanEvidence,
    logged: LoggedUses | None = None,
) -> tuple[PlanInputs, LeftOut, RecipeColumns]:
    """Return the inputs of the solver, the parts that are left out, and the plan columns of recipes.

    The inputs are for the scored experts and the categories that they may serve; parts of the declaration and of the
    data are left out.
    The feedback in `evidence` is merged with the scores of the categories that it reassigned, and the usage measured by
    `coe score` with the `logged` usage. Enough logged requests of the router in use also give the weights of categories
    and the sample of traffic, in place of the probes. Raises DataError where no category can be planned.
    """
    data = read_quality(folder, benchmark=benchmark, only=registry.expert_names, partly=True)
    probes = _PlannedProbes.of(folder, data, registry)
    uses = probes.uses if logged is None else _with_logged(probes.uses, logged, registry)
    recipes, all_scores = _with_recipes(
        folder, data, registry, probes, streamed=share_of_streams(logged), expected=uses
    )
    columns = (*probes.experts, *recipes.arms)
    measured = tabulate_partly(probes.categories, columns, probes.member, all_scores)
    pseudo_count = fit_pseudo_count(probes.labels, probes.scores)
    reassigned = tuple(name for name in evidence.reassigned if name in probes.categories)
    feedback = None
    if reassigned and evidence.feedback is not None:
        feedback = evidence.feedback.over(probes.categories, columns)
    quality = _lower_bounds(
        measured,
        recipes,
        feedback,
        reassigned=np.isin(probes.categories, reassigned),
        deviations=deviations,
        pseudo_count=pseudo_count,
    )
    mix = _logged_mix(settings, logged, probes.categories)
    weights = np.maximum(probes.member.sum(axis=0), 1.0) if mix is None else mix[0]
    problem = declared_problem(
        registry, measured, quality=quality, weights=weights, measured_uses=uses, recipes=recipes
    )
    basis = PlanInputs(
        problem,
        measured,
        _traffic(settings, problem, probes.prompts, None if mix is None else mix[1]),
        deviations,
        f"{len(probes.prompts)} prompts of {folder.name}",
        pseudo_count,
        measured=measured,
        feedback=feedback,
        reassigned=reassigned,
        dependencies=Dependencies.of(registry),
        measured_uses=uses,
        prompt_scores=(probes.member.argmax(axis=1), all_scores),
        prompts=[(data.prompt_ids[row], data.prompts[row]) for row in probes.rows],
    )
    return basis, LeftOut.of(registry, data, measured), recipes


@dataclass(frozen=True, slots=True, eq=False)
class _PlannedProbes:
    """The prompts of planned categories, and their scores by the scored experts.

    `rows` are their places in the `Quality`. `member` (n_rows, n_categories) is 1 for the category of a prompt;
    `scores` has shape (n_rows, n_experts).
    """

    experts: tuple[str, ...]
    categories: tuple[str, ...]
    rows: list[int]
    labels: list[str]
    prompts: list[str]
    member: NDArray[np.float64]
    scores: NDArray[np.float64]
    uses: MeasuredUses

    @classmethod
    def of(cls, folder: Path, data: Quality, registry: Registry) -> _PlannedProbes:
        """Select the prompts of the categories that the scored experts may serve. Raises DataError if there is none."""
        experts = _scored_experts(data, registry)
        pins = registry.assignment
        categories = tuple(name for name in registry.category_names if pins.get(name, experts[0]) in experts)
        rows = _planned_rows(folder, data, categories)
        labels, prompts = [data.categories[row] for row in rows], [data.prompts[row] for row in rows]
        member = np.array([[name == category for name in categories] for category in labels], dtype=np.float64)
        cells = data.grid(rows, experts)
        uses = MeasuredUses.of(categories, experts, member, {name: use[cells] for name, use in data.uses.items()})
        return cls(experts, categories, rows, labels, prompts, member, data.scores[cells], uses)


def _without_waits(tables: Mapping[str, ScoreTable], registry: Registry) -> dict[str, ScoreTable]:
    """Return the tables without logged times of experts that share a device: these include waits of the plan then in
    use."""

    def shares_device(name: str) -> bool:
        return bool(registry.devices_of(registry.expert(name)))

    def kept(table: ScoreTable) -> ScoreTable:
        shared = np.array([shares_device(name) for name in table.experts], dtype=np.bool_)
        mean, variance = (np.where(shared, np.nan, values) for values in (table.mean, table.variance))
        return replace(table, mean=mean, variance=variance, count=np.where(shared, 0.0, table.count))

    times = ("latency_ms", "first_token_ms")
    return {name: kept(table) if name in times else table for name, table in tables.items()}


def _scored_experts(data: Quality, registry: Registry) -> tuple[str, ...]:
    """Return the experts with scores; print the notes."""
    for note in data.notes:
        print_error(f"note: {note}")
    return tuple(name for name in registry.expert_names if name in data.models)


def _with_recipes(
    folder: Path,
    data: Quality,
    registry: Registry,
    probes: _PlannedProbes,
    *,
    streamed: float,
    expected: MeasuredUses,
) -> tuple[RecipeColumns, NDArray[np.float64]]:
    """Fit the recipes on the prompts that all experts were scored on.

    `streamed` is the share of requests whose answers are streamed, `expected` are the uses that the plan expects of
    requests. Returns their columns, and the scores (n_rows, n_experts + n_arms) of experts and arms, NaN where missing.
    """
    whole = np.flatnonzero(np.isfinite(probes.scores).all(axis=1))
    with note_if_slow("fitting recipes"):
        recipes = recipe_columns(
            folder,
            data,
            registry,
            rows=[probes.rows[row] for row in whole.tolist()],
            experts=probes.experts,
            categories=probes.categories,
            streamed=streamed,
            probed=probes.uses,
            expected=expected,
        )
    all_scores = np.full((len(probes.rows), len(probes.experts) + len(recipes.arms)), np.nan)
    all_scores[:, : len(probes.experts)] = probes.scores
    if recipes.arms:
        all_scores[whole, len(probes.experts) :] = recipes.scores
    return recipes, all_scores


def share_of_streams(logged: LoggedUses | None) -> float:
    """Return the logged share of requests that are streamed.

    While it is unknown, all count as streams: fewer caps apply to them, so that their answers cost more.
    """
    return 1.0 if logged is None or logged.streamed is None else logged.streamed


def _with_logged(scored: MeasuredUses, logged: LoggedUses, registry: Registry) -> MeasuredUses:
    """Return the uses that scores measured, merged with those of logged requests."""
    tables = {name: one.over(scored.categories, scored.experts) for name, one in logged.tables(scored.experts).items()}
    return scored.updated(_without_waits(tables, registry))


def _planned_rows(folder: Path, data: Quality, categories: Sequence[str]) -> list[int]:
    """The prompts of planned categories, by index. Raises DataError if there is none."""
    rows = [row for row, category in enumerate(data.categories) if category in categories]
    if not rows:
        raise DataError(
            f"{folder}: no prompt is of a category that can be planned ({', '.join(categories) or 'none'}): "
            "run `coe score` with probes of these, for every expert that answers them"
        )
    return rows


def _lower_bounds(
    measured: ScoreTable,
    recipes: RecipeColumns,
    feedback: ScoreTable | None,
    *,
    reassigned: NDArray[np.bool_],
    deviations: float,
    pseudo_count: float,
) -> NDArray[np.float64]:
    """Return lower confidence bounds of quality, `deviations` standard errors below the estimates.

    Those of arms, the last columns, are below the quality that replay gave. The bounds of the `reassigned` categories,
    shape (n_categories,), are of scores and `feedback` together.
    """
    quality = measured.lower(deviations=deviations, pseudo_count=pseudo_count)
    if recipes.arms:
        error = measured.error(pseudo_count=pseudo_count)[:, -len(recipes.arms) :]
        quality[:, -len(recipes.arms) :] = np.maximum(recipes.quality - deviations * error, 0.0)
    if feedback is None:
        return quality
    strength = min(pseudo_count, MAX_PSEUDO_COUNT)
    both = merged(measured, feedback).lower(deviations=deviations, pseudo_count=strength)
    return np.where(reassigned[:, None], both, quality)


def _logged_mix(
    settings: Settings, logged: LoggedUses | None, categories: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return the weights of categories and the sample of posteriors of logged requests that the router in use
    classified; None if there are too few."""
    if logged is None:
        return None
    return logged.mix(categories, router=ArtifactStore(settings.artifacts, ROUTER).in_use() or "")


def _traffic(
    settings: Settings, problem: Problem, prompts: Sequence[str], logged: NDArray[np.float64] | None
) -> NDArray[np.float64] | None:
    """The `logged` posteriors, or else those of a random sample of the prompts by the router in use; None where no
    price depends on them."""
    if not problem.budget.rows().keys() - {"memory_gb"}:
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


def paired_errors(basis: PlanInputs, assignment: Assignment) -> NDArray[np.float64]:
    """Standard error of each expert's difference from the chosen expert, by category; NaN if it is unknown."""
    found = basis.paired_error(assignment)
    return np.full(basis.problem.quality.shape, np.nan) if found is None else np.array(found)


def compare_with_single_experts(basis: PlanInputs, assignment: Assignment) -> list[dict[str, Any]]:
    """Return rows that compare the plan (first row) with each single expert serving all planned categories.

    `quality` is the lower confidence bound that the plan optimizes, and `estimate` the mean. `cost` is in US dollars
    per thousand requests. `latency_ms` is null if it is unknown. Pins and limits are ignored for single experts.
    `less_plan` is the expert's quality minus the plan's; its standard error is that of paired means, null if a
    category has too few prompts.
    """
    problem = basis.problem
    bounds = basis.table.lower(deviations=basis.deviations, pseudo_count=basis.pseudo_count)
    single, estimates = (problem.weights @ bounds).tolist(), basis.table.shrunk(pseudo_count=basis.pseudo_count)
    chosen = [problem.experts.index(name) for name in assignment.choice]
    cost, latency = (problem.weights @ problem.use(row) for row in ("mean_cost", "mean_latency_ms"))
    used = planned_use(problem, assignment)
    plan: dict[str, Any] = {
        "expert": None,
        "quality": planned_quality(problem, assignment),
        "estimate": float(problem.weights @ estimates[np.arange(len(chosen)), chosen]),
        "cost": used.get("mean_cost"),
        "latency_ms": used.get("mean_latency_ms"),
    }
    errors = np.sqrt((problem.weights**2) @ paired_errors(basis, assignment) ** 2).tolist()
    means = (problem.weights @ estimates).tolist()
    rows = zip(problem.experts, single, means, cost.tolist(), latency.tolist(), errors, strict=True)
    return [
        plan,
        *(
            {
                "expert": name,
                "quality": quality,
                "estimate": mean,
                "cost": cost,
                "latency_ms": latency if np.isfinite(latency) else None,
                "less_plan": Difference(quality - plan["quality"], error).to_json(),
            }
            for name, quality, mean, cost, latency, error in rows
        ),
    ]
