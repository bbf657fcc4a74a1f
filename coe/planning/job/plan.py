"""Makes a plan from measured scores, puts it into use, and reports it as JSON (`coe plan`).

If the folder has scores with and without passages (`coe score --retrieval both`), the retrieval gate is fitted too.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.artifacts.artifact_sync import synced_store
from coe.artifacts.manifest import GATE
from coe.artifacts.store import ArtifactStore
from coe.errors import ArtifactError, DataError, StoreError
from coe.learning.log_frame import frame_of, open_logs
from coe.learning.logged_uses import LoggedUses, uses_report
from coe.learning.refit import demoted_categories
from coe.measuring.gate_fit import GAINS_FILE, GateExamples, fit_gate, gate_report, read_gains
from coe.planning.assignment import Assignment
from coe.planning.job.basis import Basis, compare_with_single_experts, difference_errors, plan_basis
from coe.planning.plan import Plan
from coe.planning.problem import Problem
from coe.planning.residual import Evidence, Residual, fit_residual
from coe.planning.solver import marginal_values, planned_quality, planned_use, solve
from coe.registry import Registry, yaml_source
from coe.registry.yaml_source import KeyPath
from coe.retrieval.gate import GATE_FILE
from coe.routing.request_text import prompt_text
from coe.settings import Settings
from coe.terminal import note_if_slow, print_error


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """Options of a plan.

    With `drop_feedback` the plan rests on the scores alone.
    Uses are also measured in the routing log of the last `log_seconds`; 0 for none.
    """

    benchmark: str | None
    drop_feedback: bool
    dry_run: bool
    log_seconds: float = 0.0


def make_plan(
    settings: Settings, registry: Registry, store: ArtifactStore, scores: Path, options: PlanOptions
) -> dict[str, Any]:
    """Solve, publish and promote a plan from the folder `scores`. Also fit the retrieval gate if it has paired scores.

    Returns the report. Raises DataError, or ArtifactError for a gate without a router.
    """
    before = _plan_in_use(store)
    logged = logged_uses(settings, registry, options.log_seconds)
    basis = plan_basis(
        settings,
        registry,
        scores,
        benchmark=options.benchmark,
        before=None if options.drop_feedback else before,
        logged=logged,
    )
    unplanned = _unplanned(settings, registry, basis.unplanned)
    with note_if_slow("testing the residual"):
        assignment, unused, evidence = _with_residual(settings, registry, basis)
    problem = basis.plan.problem
    with note_if_slow("finding each expert's marginal value"):
        values = marginal_values(problem, assignment)
    plan = replace(basis.plan, assignment=assignment, value_of_expert=values, unused=unused)
    if not options.dry_run:
        with store.draft() as draft:
            plan.save(draft)
            artifact = store.publish(draft, categories=assignment.categories, data=registry.digest, metrics={})
        store.promote(artifact.manifest.version, by="plan", why=f"planned on {scores}")
    gate = None
    try:
        gate = plan_gate(settings, registry, scores, dry_run=options.dry_run)
    except DataError as error:
        print_error(f"note: the retrieval gate is not fitted: {error}")
    report = plan_to_json(problem, assignment) | {
        "price_by_category": assignment.price.tolist(),
        "measured_at": plan.measured_at,
        "demoted": demoted_categories(plan.demoted),
        "assumed_tokens": _assumed_tokens(registry, plan),
        "uses": uses_report(plan, logged),
        "value_of_expert": values,
        "against": compare_with_single_experts(plan),
        "left_out": {**basis.left_out, "recipes": unplanned},
        "recipes": plan.policies.steps,
        "feedback": {
            "kept": tuple(plan.reassigned),
            "dropped": sorted(set(before.reassigned if before else {}) - set(plan.reassigned)),
        },
        "residual": evidence._asdict(),
    }
    _add_evidence(report["assignment"], registry, plan)
    return report | ({"gate": gate} if gate else {})


def _unplanned(settings: Settings, registry: Registry, left_out: Mapping[str, str]) -> dict[str, str]:
    """Return why recipes are not planned, with the line of each, and print it."""
    if not left_out:
        return {}
    number = {recipe.name: index for index, recipe in enumerate(registry.recipes) if recipe is not None}
    source = yaml_source.read(settings.config)
    found = {}
    for name, reason in left_out.items():
        path: KeyPath = ("recipes", number[name]) if name in number else ("recipes",)
        line = source.at((*path, *(("max_loss",) if "max_loss" in reason else ())))
        print_error(f"note: {line}: recipe {name!r} is not planned: {reason}")
        found[name] = f"{line}: {reason}"
    return found


def _with_residual(
    settings: Settings, registry: Registry, basis: Basis
) -> tuple[Assignment, Residual | None, Evidence]:
    """Return the assignment with its residual and the prices for it, if that improves decisions; else the measured
    prompts as a residual that is not used; and the evidence. It is fitted with the encoder of the router in use."""
    import routers
    from coe.artifacts.active_state import check_router, encoder_digest, load_router

    assignment, traffic = basis.plan.assignment, basis.plan.traffic
    try:
        artifact = check_router(settings)[1]
        encoder, router = routers.load_encoder(artifact.folder), load_router(registry, artifact)
    except ArtifactError:
        return assignment, None, Evidence(0.0, 0.0, "it needs the encoder of a router; run `coe train`")
    columns = [router.categories.index(name) for name in assignment.categories]

    def read(rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        texts = [prompt_text(basis.prompts[row][1]) for row in rows.tolist()]
        with note_if_slow("encoding the measured prompts"):
            features = encoder.features(texts)
        predictions = router.predict(texts, embeddings=features)
        return features, np.stack([one.probabilities[columns] for one in predictions])

    measured = Residual.of(
        read,
        basis.labels,
        basis.scores,
        dimensions=encoder.dimensions,
        categories=assignment.categories,
        experts=assignment.experts,
        prompts=basis.prompts,
        encoder=encoder_digest(artifact),
    )
    residual, evidence = fit_residual(measured, np.where(np.isfinite(assignment.quality), assignment.price, np.inf))
    if residual is None:
        return assignment, measured, evidence
    return solve(basis.plan.problem, traffic=traffic, residual=residual), None, evidence


def _add_evidence(rows: Sequence[dict[str, Any]], registry: Registry, plan: Plan) -> None:
    """Add quality, standard error and number of probes of each category's expert, and the standard error of its margin.

    The margin of a pinned category is removed: it had no choice.
    """
    tables = {"quality": plan.estimate, "error": plan.error, "probes": plan.table.count}
    experts = plan.problem.experts
    for number, (row, error) in enumerate(zip(rows, difference_errors(plan), strict=True)):
        row |= {name: float(values[number, experts.index(row["expert"])]) for name, values in tables.items()}
        row["pinned"] = row["category"] in registry.assignment
        row["margin"] = None if row["pinned"] else row["margin"]
        row["margin_error"] = float(error[experts.index(row["runner_up"])]) if row["runner_up"] else None


def _plan_in_use(store: ArtifactStore) -> Plan | None:
    """The plan in use; None, with a note, where it cannot be read."""
    try:
        version = store.in_use()
        return None if version is None else Plan.read(store.published(version).folder)
    except ArtifactError as error:
        print_error(f"note: the feedback in the plan in use cannot be kept: {error}")
        return None


def plan_to_json(problem: Problem, assignment: Assignment) -> dict[str, Any]:
    """The plan as JSON: expected quality and use, hosted experts, the choice by category, and mean prices."""
    rows = zip(assignment.categories, assignment.choice, assignment.runners_up, strict=True)
    return {
        "quality": planned_quality(problem, assignment),
        "used": planned_use(problem, assignment),
        "hosted": assignment.hosted,
        "assignment": [
            {"category": category, "expert": expert, "runner_up": second, "margin": margin}
            for category, expert, (second, margin) in rows
        ],
        "prices": dict(zip(assignment.experts, (problem.weights @ assignment.price).tolist(), strict=True)),
        "duals": dict(assignment.duals),
    }


def _assumed_tokens(registry: Registry, plan: Plan) -> list[str]:
    """The planned experts that have prices but no measured tokens."""
    priced = [spec.name for spec in registry.experts if spec.prices.input or spec.prices.output]
    names = [name for name in priced if name in plan.problem.experts]
    found = plan.measured_uses.over(plan.problem.categories, names)
    known = np.asarray(np.isfinite(found.input_tokens + found.output_tokens).all(axis=0)).tolist()
    return [name for name, is_known in zip(names, known, strict=True) if not is_known]


def logged_uses(settings: Settings, registry: Registry, seconds: float) -> LoggedUses | None:
    """The uses in the routing log of the last `seconds`; None, with a note, where the log cannot be read."""
    if not seconds:
        return None
    now = time.time()
    try:
        with note_if_slow("reading the routing log"), open_logs(registry.log.url, base=settings.home) as logs:
            records = logs.records(since=now - seconds, until=now)
            return LoggedUses.of(frame_of(records, ()), registry.category_names)  # no use needs the feedback
    except StoreError as error:
        print_error(f"note: uses come from the scores alone, since the routing log cannot be read: {error}")
        return None


def plan_gate(settings: Settings, registry: Registry, folder: Path, *, dry_run: bool) -> dict[str, Any] | None:
    """Fit the gate on the folder's pairs of scores and put it into use; returns its report, None without pairs.

    Raises DataError, or ArtifactError where no router is trained, whose posteriors the gate reads.
    """
    examples = load_examples(settings, registry, folder)
    if examples is None:
        return None
    gate = fit_gate(examples)
    report = gate_report(examples, registry.retrieval.price)
    if dry_run:
        return report
    store = synced_store(settings, GATE)
    with store.draft() as draft:
        gate.save(draft / GATE_FILE)
        data = hashlib.sha256((folder / GAINS_FILE).read_bytes()).hexdigest()[:16]
        artifact = store.publish(draft, categories=gate.categories, data=data, metrics=report)
    store.promote(artifact.manifest.version, by="plan", why=f"fitted on {folder}")
    return report | {"version": artifact.manifest.version}


def load_examples(settings: Settings, registry: Registry, folder: Path) -> GateExamples | None:
    """The pairs of scores, with the posteriors and vectors of the router in use; None without any."""
    examples = read_gains(folder, registry.expert_names)
    if examples is None:
        return None
    import routers
    from coe.artifacts.active_state import check_router, load_router

    artifact = check_router(settings)[1]
    router = load_router(registry, artifact)
    return examples(router, routers.load_document_encoder(artifact.folder))
