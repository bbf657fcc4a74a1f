"""`coe plan`: measured scores and the declared budget become the assignment in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from coe.artifacts.store import ArtifactStore
from coe.cli.common import Config, Json, image, keep_output_clean, settings_for
from coe.cli.plan_gate import plan_gate
from coe.cli.plan_report import LeftOut, plan_report, show_plan
from coe.errors import ArtifactError, DataError
from coe.jobs.progress import told_if_long
from coe.learning.estimation.evidence import joined
from coe.learning.estimation.refit import STRONGEST_SHRINKAGE
from coe.learning.evaluation.quality import read_quality
from coe.learning.retraining.budget_solver import declared_problem
from coe.mapping import (
    VALUES,
    Assignment,
    Basis,
    Budget,
    Dependencies,
    ParetoRow,
    PlanEvidence,
    Problem,
    TimeBudget,
    least,
    marginal_values,
    read_evidence,
    rounded,
    routed_use,
    solve,
    sweep,
)
from coe.mapping.score_table import fit_pseudo_count, tabulate_softly
from coe.registry import Registry, load
from coe.runtime.artifact_sync import synced_store
from coe.settings import Settings
from coe.terminal import say, say_error, say_json

ASSIGNMENT = "assignment.json"
SAMPLE = 4000
"""Prompts whose posteriors the prices are fitted to."""
OVER = 1.05
"""Part of a limit beyond which the sample is told to break it; prices keep it to about a hundredth where they can."""

Scores = Annotated[Path | None, typer.Argument(help="Folder with prompts, scores and models, as of `coe score`.")]
Name = Annotated[str | None, typer.Option("--benchmark", help="Which one, where the folder holds several.")]
Bound = Annotated[float, typer.Option("--deviations", min=0, help="Standard errors below the mean that are trusted.")]
Sweep = Annotated[str | None, typer.Option("--sweep", help="ROW=LIMIT,LIMIT,...: also plan under these limits.")]
Plot = Annotated[Path | None, typer.Option("--plot", callback=image, help="Image of the sweep (.png or .svg).")]
Forget = Annotated[bool, typer.Option("--forget", help="Go back to the assignment declared in experts.yaml.")]
Drop = Annotated[
    bool, typer.Option("--drop-learnt", help="Plan on the scores alone, without what `coe retrain` learnt.")
]
Dry = Annotated[bool, typer.Option("--dry-run", help="Show the plan and keep the assignment in use.")]


def plan(
    scores: Scores = None,
    name: Name = None,
    deviations: Bound = 1.0,
    sweep_: Sweep = None,
    plot: Plot = None,
    dry_run: Dry = False,
    forget: Forget = False,
    drop_learnt: Drop = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Find the best expert for every category under the budget, exactly, and put the plan into use.

    Categories that `coe retrain` has moved since keep the feedback that moved them, unless --drop-learnt is given.
    Where the folder has what passages changed (`coe score --retrieval both`), the retrieval gate is fitted too.
    """
    keep_output_clean()
    settings = settings_for(config)
    store = synced_store(settings, "assignment")
    if forget:
        store.clear(by="plan", why="--forget")
        told = "the assignment of experts.yaml is in use; running gateways take it over soon"
        say_json({"assignment": None, "note": told}) if json else say(told)
        return
    if scores is None:
        raise typer.BadParameter("give the folder of scores, or --forget")
    if plot is not None and sweep_ is None:
        raise typer.BadParameter("draws a sweep: give --sweep too", param_hint="--plot")
    row, limits = _limits(sweep_) if sweep_ else ("", [])
    registry = load(settings.config, environ=settings.environ)
    learnt, before = _learnt(store, registry)
    basis, left_out = basis_of(
        settings,
        registry,
        scores,
        benchmark=name,
        deviations=deviations,
        learnt=PlanEvidence() if drop_learnt else learnt,
    )
    problem = basis.problem
    with told_if_long("solving the plan"):
        assignment = solve(problem, traffic=basis.traffic)
    with told_if_long("the sweep"):
        rows = sweep(problem, row, limits) if row else []
        impossible = _impossible(problem, row, limits, rows)
    if plot is not None:
        from coe.learning.plots import plot_sweep

        plot_sweep(rows, row=row, path=plot)
    patience = TimeBudget()
    with told_if_long("finding what each expert is worth"):
        values = marginal_values(problem, assignment, patience=patience.part(VALUES))
    if not dry_run:
        with store.draft() as draft:
            (draft / ASSIGNMENT).write_bytes(assignment.to_json())
            with told_if_long("finding what other budgets would give"):
                basis.save(draft, assignment, values=values, patience=patience)
            artifact = store.publish(draft, categories=assignment.categories, data=registry.digest, metrics={})
        store.promote(artifact.manifest.version, by="plan", why=f"planned on {scores}")
    if patience.missed:
        say_error(f"note: left out, since it would have taken too long: {', '.join(patience.missed)}")
    gate = plan_gate(settings, registry, scores, dry_run=dry_run)
    report = plan_report(basis, assignment, rows, values, pins=registry.assignment)
    report |= {"sweep_impossible": impossible, "left_out": asdict(left_out)}
    report["learnt"] = _learnt_report(learnt, basis, before, assignment)
    report["sample"] = _sampled(problem, assignment, basis.traffic)
    report |= {"gate": gate} if gate else {}
    if json:
        say_json(report)
    else:
        show_plan(report, scores, kept=dry_run)


def basis_of(
    settings: Settings,
    registry: Registry,
    folder: Path,
    *,
    benchmark: str | None = None,
    deviations: float,
    learnt: PlanEvidence,
) -> tuple[Basis, LeftOut]:
    """The scored experts and the categories that they may serve, with measured quality: lower bounds, pins and budget
    applied; and what is left out. The feedback in `learnt` is added to the scores of the categories that it moved.

    Raises DataError where nothing is scored that could be planned.
    """
    data = read_quality(folder, benchmark=benchmark, only=registry.expert_names)
    for note in data.notes:
        say_error(f"note: {note}")
    experts = tuple(name for name in registry.expert_names if name in data.models)
    categories = tuple(name for name in registry.category_names if registry.assignment.get(name, experts[0]) in experts)
    rows = [row for row, category in enumerate(data.categories) if category in categories]
    if not rows:
        raise DataError(
            f"{folder}: no prompt is of a category that can be planned ({', '.join(categories) or 'none'}): "
            "run `coe score` with probes of these, for every expert that answers them"
        )
    labels, prompts = [data.categories[row] for row in rows], [data.prompts[row] for row in rows]
    member = np.array([[name == category for name in categories] for category in labels], dtype=np.float64)
    scores = data.scores[np.ix_(rows, [data.models.index(name) for name in experts])]
    measured = tabulate_softly(categories, experts, member, scores)
    moved = tuple(name for name in learnt.moved if name in categories)
    feedback = learnt.over(categories, experts) if moved else None
    weights = np.maximum(measured.count.max(axis=1), 1.0)  # a category without probes still comes
    count = fit_pseudo_count(labels, scores)
    quality = measured.lower(deviations=deviations, pseudo_count=count)
    if feedback is not None:
        both = joined(measured, feedback)
        rows_moved = np.isin(categories, moved)[:, None]
        strength = min(count, STRONGEST_SHRINKAGE)
        quality = np.where(rows_moved, both.lower(deviations=deviations, pseudo_count=strength), quality)
    problem = declared_problem(registry, measured, quality=quality, weights=weights)
    traffic = _traffic(settings, problem, prompts)
    source = f"{len(prompts)} prompts of {folder.name}"
    basis = Basis(
        problem,
        measured,
        traffic,
        deviations,
        source,
        count,
        measured=measured,
        learnt=feedback,
        moved=moved,
        dependencies=Dependencies.of(registry),
    )
    return basis, LeftOut.of(registry, data, measured)


def _learnt(store: ArtifactStore, registry: Registry) -> tuple[PlanEvidence, dict[str, str]]:
    """The evidence of the plan in use and its expert by category; empty, with a note, where it cannot be read."""
    try:
        version = store.in_use()
        if version is None:
            return PlanEvidence(), {}
        folder = store.published(version).folder
        found = read_evidence(folder, categories=registry.category_names, experts=registry.expert_names)
        plan = Assignment.from_json((folder / ASSIGNMENT).read_bytes())
        return found, dict(zip(plan.categories, plan.choice, strict=True))
    except ArtifactError as error:
        say_error(f"note: what was learnt from feedback cannot be kept: {error}")
        return PlanEvidence(), {}


def _learnt_report(
    learnt: PlanEvidence, basis: Basis, before: Mapping[str, str], assignment: Assignment
) -> dict[str, list[str]]:
    """The categories that feedback had moved: those that keep their expert, those that the scores move to another one
    in spite of it, and those whose feedback was dropped."""
    chosen = dict(zip(assignment.categories, assignment.choice, strict=True))
    back = [name for name in basis.moved if chosen[name] != before.get(name)]
    return {
        "kept": [name for name in basis.moved if name not in back],
        "moved_by_scores": back,
        "dropped": sorted(set(learnt.moved) - set(basis.moved)),
    }


def _traffic(settings: Settings, problem: Problem, prompts: Sequence[str]) -> NDArray[np.float64] | None:
    """The posteriors of a random sample of the prompts by the router in use; None where no price depends on them."""
    if not problem.budget.rows().keys() - {"memory_gb"}:
        return None
    from coe.runtime.active_state import check_router, load_router

    try:
        router = load_router(*check_router(settings))
    except ArtifactError as error:
        say_error(f"note: prices are for pure categories, since the router cannot be asked ({error})")
        return None
    sample = np.random.default_rng(0).permutation(len(prompts))[:SAMPLE]
    posteriors = np.stack([found.probabilities for found in router.predict([prompts[index] for index in sample])])
    return rounded(posteriors[:, [router.categories.index(name) for name in problem.categories]])


def _limits(text: str) -> tuple[str, list[float]]:
    row, _, limits = text.partition("=")
    if row not in Budget().__dataclass_fields__:
        known = ", ".join(Budget().__dataclass_fields__)
        raise typer.BadParameter(f"unknown row {row!r}; known: {known}", param_hint="--sweep")
    try:
        return row, [float(limit) for limit in limits.split(",")]
    except ValueError:
        raise typer.BadParameter(
            "write ROW=LIMIT,LIMIT,... such as mean_active_b=2,4,8", param_hint="--sweep"
        ) from None


def _sampled(
    problem: Problem, assignment: Assignment, traffic: NDArray[np.float64] | None
) -> dict[str, dict[str, float]]:
    """By limited row what the sample of traffic uses, routed at the plan's prices, and the limit; empty without any."""
    used = {} if traffic is None else routed_use(problem, assignment, traffic)
    found = {row: {"used": value, "limit": problem.budget.rows()[row]} for row, value in used.items()}
    for row, one in found.items():
        if one["used"] > OVER * one["limit"]:
            say_error(
                f"note: routed at the plan's prices the sample of traffic comes to {row} {one['used']:.4g}, above the "
                f"limit of {one['limit']:g}: prices do not part a crowd of requests that the router takes for the same"
            )
    return found


def _impossible(
    problem: Problem, row: str, limits: Sequence[float], rows: Sequence[ParetoRow]
) -> dict[str, Any] | None:
    """The limits of a sweep that cannot be kept, and the smallest that would do, null where that takes too long to
    find; None where all can."""
    left_out = sorted(set(limits) - {found.limit for found in rows})
    if not left_out:
        return None
    try:
        smallest = least(problem, row, TimeBudget())
    except TimeoutError:
        smallest = None
    return {"row": row, "limits": left_out, "smallest": smallest}
