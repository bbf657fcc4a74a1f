"""The learning round of the plan: refits quality from rated traffic and judges moves of categories between experts.

`coe.learning.plan_candidate` refits and tests; this module loads what it needs and writes the report. The residual is
fitted again to the measured prompts and to the rated requests whose text the log keeps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from coe.artifacts.manifest import ASSIGNMENT
from coe.errors import DataError
from coe.learning.experience import Experience, LoadedExperience
from coe.learning.moves import HeldOutProbes, split_probes
from coe.learning.plan_candidate import CurrentPlan, JudgedPlan, judge_plan, with_residual_alone
from coe.learning.refit import MAX_PSEUDO_COUNT, Weighting, agreements, still_demoted, trust_of, with_demoted
from coe.learning.round import Candidate, Job, ManifestFields, RoundState, read_round_states
from coe.measuring.quality import Quality, read_quality
from coe.planning.job.basis import BudgetSolver
from coe.planning.plan import Plan
from coe.planning.problem import relative_cost
from coe.planning.residual import MAX_PROMPTS, Evidence, Residual, fit_residual
from coe.planning.score_table import Array, ScoreTable, tabulate_partly
from coe.planning.uses import MeasuredUses
from coe.recipes.fitting.columns import RecipeColumns, recipe_columns
from coe.records.record import FEEDBACK_KINDS
from coe.terminal import note_if_slow

MIN_RATED = 100
"""Rated requests with text that a residual is fitted to again."""


def fit_rated(measured: Residual | None, job: Job) -> tuple[Residual | None, Evidence | None]:
    """Return the residual with rated requests, if that improves the decisions of the assignment in use; and the
    evidence, None without measured prompts.

    Scores and thumbs of tenants that do not contradict the others count; a preference says little of one answer.
    """
    if measured is None:
        return None, None
    import routers
    from coe.artifacts.active_state import check_router, encoder_digest

    artifact, assignment, experience = check_router(job.settings)[1], job.in_use.assignment, job.loaded.experience
    if measured.encoder != encoder_digest(artifact):
        return None, Evidence(0.0, 0.0, "it is of another encoder; run `coe plan` again")
    ids, texts = job.loaded.frame.table["request_id"].to_pylist(), job.loaded.frame.texts
    counts = (experience.weight == 1.0) & (trust_of(experience, agreements(experience)) == 1.0)
    rows = [row for row in np.flatnonzero(counts).tolist() if ids[row] in texts][-MAX_PROMPTS:]
    if len(rows) < MIN_RATED:
        return None, Evidence(0.0, 0.0, f"{len(rows)} rated requests have text in the log; it needs {MIN_RATED}")
    names = [ids[row] for row in rows]
    with note_if_slow("encoding the rated requests"):
        features = routers.load_encoder(artifact.folder).features([texts[name] for name in names])
    answered = experience.chosen[rows, None] == np.arange(len(assignment.experts))
    scores = np.where(answered, experience.reward[rows, None], np.nan)
    prompts = measured.over(assignment.categories, assignment.experts)
    prompts = prompts.with_ratings(names, measured.projection(features), experience.posterior[rows], scores)
    return fit_residual(prompts, np.where(np.isfinite(assignment.quality), assignment.price, np.inf))


def judge(job: Job, probes: Path | None, benchmark: str | None = None) -> Candidate | str:
    """Judge a plan. Needs new feedback, or measured quality in the folder `probes` (of `benchmark`, if it holds
    several)."""
    measured = _measure(job, probes, benchmark)
    last, digest = read_round_states(job.settings.artifacts).get(ASSIGNMENT), job.in_use.assignment.digest
    state = RoundState(digest, 0, measured.digest, last.feedback if last else "", job.now, False, "", "")
    is_new = probes is not None if last is None else (last.inputs, last.in_use) != (state.inputs, digest)
    for page in job.logs.pages(after=state.feedback):
        is_new, state = is_new or bool(page.events), replace(state, feedback=page.cursor)
    if not is_new:
        return "no feedback is new"
    try:
        loaded = job.loaded
    except DataError as error:
        return str(error)
    return _judge(job, loaded, measured, state)


def _judge(job: Job, loaded: LoadedExperience, measured: _Measured, state: RoundState) -> Candidate:
    experience, version = loaded.experience, job.store(ASSIGNMENT).in_use()
    plan = None if version is None else Plan.read(job.store(ASSIGNMENT).published(version).folder)
    reassigned, policy = {} if plan is None else dict(plan.reassigned), job.registry.policy
    current = CurrentPlan(
        job.in_use.assignment,
        rate=policy.exploration.rate,
        loss=policy.exploration.max_quality_loss,
        charge=policy.cost_weight * relative_cost(job.registry, job.columns),
        since=reassigned,
    )
    residual = current.assignment.residual
    unused = None if plan is None or residual else plan.unused
    rated, tested = fit_rated(residual or unused, job)
    residual = rated or residual
    uses, recipes = MeasuredUses.nothing(), RecipeColumns()
    if plan is not None:
        planned, policies = plan.problem, plan.policies.only(arms := plan.arms(job.registry))
        names = job.in_use.router.categories, arms
        of_arms = planned.uses.of_arms((planned.categories, planned.experts), names)
        uses, recipes = plan.measured_uses, RecipeColumns(policies.by_arm, policies.written, uses=of_arms)
    solver = BudgetSolver(job.registry, experience, uses, recipes, residual)
    base = measured.table
    if base is None and plan is not None and plan.measured is not None:
        base = plan.measured.over(job.in_use.router.categories, job.columns)
    measured_at = measured.measured_at or ({} if plan is None else plan.measured_at)
    demoted = {} if plan is None else still_demoted(plan, measured_at)
    base = None if base is None else with_demoted(base, demoted)
    judged = judge_plan(
        experience,
        current,
        now=job.now,
        solve_plan=solver,
        probes=measured.probes,
        base=base,
        weighting=measured.weighting,
        guarded=job.registry.category_names,
    )
    if rated and tested and not any(move.accepted for move in judged.moves):
        judged = with_residual_alone(judged, current, solve_plan=solver, gain=_residual_sentence(tested))
    judgement = judged.judgement
    state = replace(state, promoted=judgement.promote, sentence=judgement.sentence)
    reassigned |= {move.category: move.decided for move in judged.moves if move.accepted}
    report = plan_report(judged, current, experience=experience, left_out=loaded.left_out)
    report["residual"] = None if tested is None else {**tested._asdict(), "sentence": _residual_sentence(tested)}

    def save(folder: Path) -> ManifestFields:
        found = solver.plan(judged.candidate, judged.refit, measured=base, reassigned=reassigned)
        policies = found.policies if plan is None else plan.policies
        rest = None if residual else unused
        moved = {move.category for move in judged.moves if move.accepted}
        found = replace(
            found,
            policies=policies,
            unused=rest,
            measured_at=measured_at,
            demoted={
                name: kept
                for name, drops in demoted.items()
                if (kept := tuple(drop for drop in drops if drop.category not in moved))
            },
        )
        found.save(folder)
        return {"categories": judged.candidate.categories, "data": job.registry.digest, "metrics": {}}

    return Candidate(
        state,
        replaces=version,
        report=report,
        save=save,
        digest=judged.candidate.digest,
    )


def _residual_sentence(tested: Evidence) -> str:
    used = f"is not used: {tested.refused}" if tested.refused else "is used"
    gain = f"{tested.gain:+.4f} ± {tested.error:.4f} on the measured prompts"
    return f"the residual with rated requests {used} ({gain})"


@dataclass(frozen=True, slots=True)
class _Measured:
    """Measured quality, if any was given; `digest` covers all inputs of a round besides the logs."""

    digest: str
    table: ScoreTable | None = None
    probes: HeldOutProbes | None = None
    weighting: Weighting = field(default_factory=Weighting)
    measured_at: Mapping[str, float] = field(default_factory=dict)


def _measure(job: Job, folder: Path | None, benchmark: str | None) -> _Measured:
    declared = job.registry.digest
    if folder is None:
        return _Measured(declared)
    data, router = read_quality(folder, benchmark=benchmark), job.in_use.router
    table, probes = split_probes(
        data,
        categories=router.categories,
        experts=job.registry.expert_names,
        posteriors=lambda texts: np.stack([found.probabilities for found in router.predict(texts)]),
        arms=_measured_arms(job, folder, data),
    )
    contents = orjson.dumps((declared, data.digest, hashlib.sha256(data.scores.tobytes()).hexdigest()))
    columns = [data.models.index(name) for name in job.registry.expert_names]
    names = sorted(set(data.categories))
    member, scores = np.eye(len(names))[data.labels(range(len(data.prompts)), names)], data.scores[:, columns]
    measured = tabulate_partly(names, job.registry.expert_names, member, scores)
    fitted = measured.posterior().strength
    weighting = Weighting(pseudo_count=min(fitted, MAX_PSEUDO_COUNT))
    return _Measured(hashlib.sha256(contents).hexdigest(), table, probes, weighting, data.measured_at)


def _measured_arms(job: Job, folder: Path, data: Quality) -> dict[str, Array]:
    """The scores of the arms in the plan in use, shape (n_prompts,), NaN without recorded answers.

    They are measured as `coe plan` does: on each prompt by a policy that was fitted on other prompts. Raises DataError
    where an arm cannot be measured.
    """
    arms = [name for name in job.columns if name not in job.registry.expert_names]
    if not arms:
        return {}
    recipes = [one.model_copy(update={"max_loss": None}) for one in job.registry.declared_recipes if one.name in arms]
    rows = [row for row, category in enumerate(data.categories) if category in job.registry.category_names]
    found = recipe_columns(
        folder,
        data,
        job.registry,
        rows=rows,
        experts=job.registry.expert_names,
        categories=job.in_use.router.categories,
        only=recipes,
    )
    if reasons := sorted(set(found.left_out.values())):
        raise DataError(f"probes: the arms of recipes cannot be measured: {'; '.join(reasons)}")
    scores = np.full((len(data.prompts), len(arms)), np.nan)
    scores[rows] = found.scores[:, [found.arms.index(name) for name in arms]]
    return dict(zip(arms, scores.T, strict=True))


def plan_report(
    found: JudgedPlan, current: CurrentPlan, *, experience: Experience, left_out: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The report of a round, JSON-able: its inputs, the changes, the judgement, and the tenants that are not
    trusted."""
    old, new = current.assignment, found.candidate
    kinds = {kind: int((experience.kind == number).sum()) for number, kind in enumerate(FEEDBACK_KINDS)}
    return {
        **found.judgement.to_json(),
        "requests": len(experience),
        "feedback": {kind: count for kind, count in kinds.items() if count},
        "corrected": int((experience.corrected >= 0).sum()),
        "left_out": dict(left_out or {}),
        "estimates": {who: asdict(one) for who, one in found.estimates.items()},
        "changes": [
            {"category": category, "from": before, "to": after}
            for category, before, after in zip(new.categories, old.choice, new.choice, strict=True)
            if before != after
        ],
        "moves": [asdict(one) | {"sentence": one.sentence} for one in found.moves],
        "quality": found.refit.quality.tolist(),
        "counts": found.refit.table.count.tolist(),
        "categories": new.categories,
        "experts": new.experts,
        "tenants": [asdict(one) | {"sentence": one.sentence} for one in found.refit.agreements],
    }
