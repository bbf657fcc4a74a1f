"""The learning round of the plan: refits quality from rated traffic and judges moves of categories between experts.

`coe.learning.plan_candidate` refits and tests; this module loads what it needs and writes the report. Only
requests that the assignment in use decided itself count as its traffic, which `PolicyWindow` finds in the records.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from coe.artifacts.kinds import ASSIGNMENT
from coe.errors import DataError
from coe.learning.experience import Experience
from coe.learning.experience_loader import LoadedExperience
from coe.learning.moves import HeldOutProbes
from coe.learning.plan_candidate import CurrentPlan, JudgedPlan, judge_plan, with_residual_alone
from coe.learning.probe_split import split_probes
from coe.learning.refit import MAX_PSEUDO_COUNT, Weighting
from coe.learning.rounds.round import Candidate, Job, ManifestFields, RoundState, read_round_states
from coe.measuring.quality import Quality, read_quality
from coe.planning import MeasuredUses, Plan
from coe.planning.grid import Array
from coe.planning.job.basis import compare_with_single_experts
from coe.planning.job.budget_solver import BudgetSolver
from coe.planning.job.residual import refitted
from coe.planning.problem import relative_cost
from coe.planning.residual import Evidence, Residual
from coe.planning.score_table import ScoreTable, fit_pseudo_count
from coe.recipes.fitting.columns import RecipeColumns, recipe_columns
from coe.records.feedback import FEEDBACK_KINDS
from coe.records.record import RoutingRecord, observed


class PolicyWindow:
    """Finds the time (Unix seconds) `since` which one assignment has decided all requests, exploring as declared.

    Read from the records, not from promotion times: clocks differ, and gateways apply a promotion a little later.
    """

    def __init__(self, digest: str, *, exploration: tuple[float, float] | None) -> None:
        """`digest` is that of the assignment; records hold the beginning of it."""
        self._digest, self._exploration = digest, exploration
        self.since = 0.0

    def add(self, record: RoutingRecord) -> None:
        """Move the beginning of the window behind a record that another policy decided."""
        decided = bool(record.assignment) and self._digest.startswith(record.assignment)
        if record.category and not (decided and record.exploration == self._exploration):
            self.since = max(self.since, math.nextafter(record.time, math.inf))


@dataclass(slots=True)
class PlanRound:
    """A round needs new feedback, or measured quality in the folder `probes` (of `benchmark`, if it holds several).

    After `judge`, `experience` holds the data that the other rounds learn from, None without any.
    """

    probes: Path | None
    benchmark: str | None = None
    kind: str = ASSIGNMENT
    experience: Experience | None = None

    def judge(self, job: Job) -> Candidate | str | None:
        measured = _measure(job, self.probes, self.benchmark)
        state = _next_state(job, measured.digest)
        new, cursor = 0, state.feedback
        for page in job.logs.pages(after=cursor):
            new, cursor = new + len(page.events), page.cursor
        if not new and not self._has_new_inputs(job, state):
            return "no feedback is new"
        exploration = job.registry.policy.exploration
        declared = (exploration.rate, exploration.max_quality_loss) if exploration.rate else None
        window = PolicyWindow(job.in_use.assignment.digest, exploration=declared)
        damaged_before = job.logs.damaged
        try:
            loaded = job.experience(observed(job.records(), window.add))
        except DataError as error:
            return str(error)
        if damaged := job.logs.damaged - damaged_before:
            loaded = replace(loaded, left_out={**loaded.left_out, "damaged entries": damaged})
        self.experience = loaded.experience
        return _judge(job, loaded, _current_plan(job, state, since=window.since), measured, state, cursor)

    def _has_new_inputs(self, job: Job, state: RoundState) -> bool:
        last = read_round_states(job.settings.artifacts).get(ASSIGNMENT)
        if last is None:
            return self.probes is not None
        return (last.inputs, last.in_use) != (state.inputs, state.in_use)


def _next_state(job: Job, inputs: str) -> RoundState:
    """The state of this round before it has judged anything; tests of another assignment do not count."""
    last = read_round_states(job.settings.artifacts).get(ASSIGNMENT)
    digest = job.in_use.assignment.digest
    state = RoundState(digest, 0, inputs, last.feedback if last else "", job.now, False, "", "")
    if last is None or last.in_use != digest:
        return state
    return replace(state, judged=last.judged, tested=last.tested, tested_at=last.tested_at)


def _current_plan(job: Job, state: RoundState, *, since: float) -> CurrentPlan:
    exploration = job.registry.policy.exploration
    return CurrentPlan(
        job.in_use.assignment,
        since=since,
        rounds=state.judged,
        rate=exploration.rate,
        loss=exploration.max_quality_loss,
        charge=job.registry.policy.cost_weight * relative_cost(job.registry, job.columns),
        tested=state.tested,
        tested_at=state.tested_at,
    )


def _judge(
    job: Job, loaded: LoadedExperience, current: CurrentPlan, measured: _Measured, state: RoundState, cursor: str
) -> Candidate:
    experience, version = loaded.experience, job.store(ASSIGNMENT).in_use()
    plan = None if version is None else Plan.read(job.store(ASSIGNMENT).published(version).folder)
    unused, refit, tested = _refitted_residual(job, plan, experience)
    residual = current.assignment.residual if refit is None else refit
    uses = MeasuredUses.nothing() if plan is None else plan.measured_uses
    solver = BudgetSolver(job.registry, experience, uses, _planned_arms(job, plan), residual)
    base = measured.table
    if base is None and plan is not None and plan.measured is not None:
        base = plan.measured.over(job.in_use.router.categories, job.columns)
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
    if refit and tested and judged.tested and not judged.judgement.promote:
        judged = with_residual_alone(judged, current, solve_plan=solver, gain=_residual_sentence(tested))
    judgement = judged.judgement
    state = replace(state, feedback=cursor, promoted=judgement.promote, sentence=judgement.sentence)
    if judgement.evidence and judged.tested:
        state = replace(state, judged=judgement.round_, tested=judged.rated, tested_at=judged.rated_until)
    before = [] if plan is None else [name for name in plan.reassigned if name in job.registry.category_names]
    reassigned = tuple(sorted({*before, *(move.category for move in judged.moves if move.accepted)}))
    report = plan_report(judged, current, experience=experience, left_out=loaded.left_out)
    report["residual"] = None if tested is None else {**tested._asdict(), "sentence": _residual_sentence(tested)}

    def save(folder: Path) -> ManifestFields:
        found = solver.plan(judged.candidate, judged.refit, measured=base, reassigned=reassigned)
        policies = found.policies if plan is None else plan.policies
        unused_now = unused if residual is None else None
        found = replace(found, against=compare_with_single_experts(found), policies=policies, unused=unused_now)
        found.save(folder)
        return {"categories": judged.candidate.categories, "data": job.registry.digest, "metrics": {}}

    return Candidate(
        state,
        replaces=version,
        report=report,
        page=plan_markdown(report),
        plot=True,
        save=save,
        digest=judged.candidate.digest,
        restarts_tests=any(move.verdict == "better" for move in judged.moves),  # exploring continues the series
    )


def _refitted_residual(
    job: Job, plan: Plan | None, experience: Experience
) -> tuple[Residual | None, Residual | None, Evidence | None]:
    """The residual that the plan in use does not use; the one to use instead, fitted with rated requests, if it
    improves decisions; and the evidence. None of each that there is not."""
    assignment, unused = job.in_use.assignment, None
    if (residual := assignment.residual) is None and plan is not None and plan.unused is not None:
        residual = unused = plan.unused.over(assignment.categories, assignment.experts)
    if residual is None:
        return None, None, None
    return unused, *refitted(residual, job.settings, assignment, experience, job.records())


def _residual_sentence(tested: Evidence) -> str:
    gain = f"{tested.gain:+.4f} ± {tested.error:.4f} on the measured prompts"
    return (
        f"the residual with rated requests {f'is not used: {tested.refused}' if tested.refused else 'is used'} ({gain})"
    )


def _planned_arms(job: Job, plan: Plan | None) -> RecipeColumns:
    """The arms of the plan in use, with the uses that it planned."""
    if plan is None:
        return RecipeColumns()
    planned, policies = plan.problem, plan.policies.only(arms := plan.arms(job.registry))
    names = job.in_use.router.categories, arms
    uses = planned.uses.of_arms((planned.categories, planned.experts), names)
    return RecipeColumns(policies=policies.by_arm, written=policies.written, uses=uses)


@dataclass(frozen=True, slots=True)
class _Measured:
    """Measured quality, if any was given; `digest` covers all inputs of a round besides the logs."""

    digest: str
    table: ScoreTable | None = None
    probes: HeldOutProbes | None = None
    weighting: Weighting = field(default_factory=Weighting)


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
    fitted = fit_pseudo_count(data.categories, data.scores[:, columns])
    weighting = Weighting(pseudo_count=min(fitted, MAX_PSEUDO_COUNT))
    return _Measured(hashlib.sha256(contents).hexdigest(), table, probes, weighting)


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
        "estimates": {
            who: {method: asdict(one) for method, one in methods.items()} for who, methods in found.estimates.items()
        },
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


def plan_markdown(report: Mapping[str, Any]) -> str:
    """The report as a page of Markdown."""
    feedback = ", ".join(f"{count} {kind}" for kind, count in report["feedback"].items()) or "none"
    parts = [
        f"# Learning, round {report['round']}: {'promoted' if report['promoted'] else 'kept'}",
        f"{report['sentence'][0].upper()}{report['sentence'][1:]}.",
        f"{report['requests']} requests; feedback: {feedback}; {report['corrected']} corrected categories.",
    ]
    if report["left_out"]:
        parts.append(
            "Left out: " + ", ".join(f"{count} {reason}" for reason, count in report["left_out"].items()) + "."
        )
    if report["changes"]:
        rows = [[row["category"], row["from"], row["to"]] for row in report["changes"]]
        parts += ["## Changes", _table(["category", "from", "to"], rows)]
    if report["moves"]:
        parts += ["## Moves and their evidence", "\n".join(f"- {one['sentence']}" for one in report["moves"])]
    if report.get("residual"):
        parts.append(f"{report['residual']['sentence'][0].upper()}{report['residual']['sentence'][1:]}.")
    if report["estimates"]:
        parts += ["## Off-policy estimates", _estimates(report["estimates"])]
    if doubted := [one["sentence"] for one in report["tenants"] if one["trust"] < 1.0]:
        parts += ["## Feedback not trusted", "\n".join(f"- {sentence}" for sentence in doubted)]
    return "\n\n".join(parts) + "\n"


def _estimates(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    rows = [
        [who, method, f"{e['value']:.4f}", f"{e['low']:.4f} to {e['high']:.4f}", f"{e['effective']:.0f}", e["warning"]]
        for who, methods in found.items()
        for method, e in methods.items()
    ]
    return _table(["assignment", "method", "mean reward", "95 %", "effective requests", "warning"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
