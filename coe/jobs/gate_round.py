"""One round of learning for the retrieval gate: what the coin's trials taught, judged, and promoted or not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from coe.errors import DataError
from coe.jobs.plan_round import NOTHING_TO_LEARN, REPORTS, Job, Outcome
from coe.learning.estimation.experience_loader import load_experience
from coe.learning.retraining.gate_round import (
    MIN_TRIALS,
    GateTrials,
    TrialCollector,
    fit_shift,
    gate_round_report,
    judge_gate,
    with_shift,
)
from coe.learning.retraining.promotion import Judgement
from coe.learning.retraining.report import keep_report
from coe.learning.retraining.state import RoundState, read_round_states, write_round_state
from coe.retrieval.gate import GATE_FILE, Gate, GateThresholds, OutdatedGate

GATE = "gate"


def learn_gate(job: Job) -> Outcome | None:
    """A round; None where no documents are declared, there is no gate for these categories, or no coin was thrown."""
    artifact = job.store(GATE).current()
    if job.registry.retrieval.store is None or artifact is None:
        return None
    began = artifact.manifest.version
    try:
        gate = Gate.load(artifact.folder / GATE_FILE)
    except OutdatedGate as error:
        return Outcome(GATE, False, f"{NOTHING_TO_LEARN}: {error}")
    if set(gate.categories) != set(job.in_use.router.categories):
        return None
    trials = _trials(job, began)
    if trials is None:
        return None
    if len(trials) < MIN_TRIALS:
        return Outcome(
            GATE, False, f"{NOTHING_TO_LEARN}: {len(trials)} trials are rated, and a round takes {MIN_TRIALS}"
        )
    last, inputs = read_round_states(job.settings.artifacts).get(GATE), _digest(trials)
    same = last is not None and last.in_use == began
    if last and same and last.inputs == inputs:
        return Outcome(GATE, False, f"{NOTHING_TO_LEARN}: no trial is new")
    bar, round_ = (
        GateThresholds.of(gate.cost, job.registry.retrieval.price).insert,
        1 + (last.judged if last and same else 0),
    )
    judgement = judge_gate(trials, bar=bar, round_=round_, guarded=job.registry.category_names)
    rounds = RoundState(began, judgement.round_, inputs, "", job.now, judgement.promote, judgement.sentence, "")
    return _concluded(job, gate, trials, judgement, rounds)


def _trials(job: Job, version: str) -> GateTrials | None:
    coins = TrialCollector(version)
    try:
        gathered = load_experience(
            coins.among(job.logs.records(since=job.since, deadline=job.now)),
            job.logs.feedback(since=job.since),
            categories=job.in_use.router.categories,
            experts=job.registry.expert_names,
        )
    except DataError:
        return None
    return coins.trials(gathered.experience)


def _digest(trials: GateTrials) -> str:
    whole = hashlib.sha256(trials.told.identity.tobytes() + trials.told.reward.tobytes())
    return whole.hexdigest()[:16]


def _concluded(job: Job, gate: Gate, trials: GateTrials, judgement: Judgement, rounds: RoundState) -> Outcome:
    """Promote the gate with what all trials taught, or keep the report, and remember the round."""
    report = gate_round_report(trials, fit_shift(trials), judgement)
    if job.dry_run:
        return Outcome(GATE, False, f"dry run, nothing is changed; {rounds.sentence}", report=report)
    version = None
    if judgement.promote:
        store, new = job.store(GATE), with_shift(gate, trials)
        with store.draft() as draft:
            new.save(draft / GATE_FILE)
            _write(draft, report)
            artifact = store.publish(draft, categories=new.categories, data=rounds.inputs, metrics=report)
        version, folder = artifact.manifest.version, artifact.folder
        job.promote(GATE, version, instead_of=rounds.in_use, why=rounds.sentence)
        rounds = replace(rounds, in_use=version, judged=0)
    else:
        folder = keep_report(job.settings.artifacts / REPORTS, partial(_write, report=report), kind=GATE, now=job.now)
    write_round_state(job.settings.artifacts, GATE, replace(rounds, report=str(folder)))
    return Outcome(GATE, judgement.promote, rounds.sentence, version, str(folder), report)


def _write(folder: Path, report: Mapping[str, Any]) -> None:
    (folder / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    lines = [f"| {one['count']} | {one['expected']:+.3f} | {one['seen']:+.3f} |" for one in report["gain"]]
    page = ["# Retrieval gate", "", report["sentence"], ""]
    page += ["| trials | gain expected | gain seen |", "|---|---|---|", *lines, ""]
    (folder / "report.md").write_text("\n".join(page), encoding="utf-8")
