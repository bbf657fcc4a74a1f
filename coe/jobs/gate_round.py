"""The learning round of the retrieval gate: fits a shift of its gains to rated trials and judges it.

A trial is a request for which chance decided whether the passages found were added. The estimation and the test are in
`coe.learning.retraining.gate_round`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from coe.artifacts.kinds import GATE
from coe.errors import DataError
from coe.jobs.round import Candidate, Job, ManifestFields
from coe.learning.retraining.gate_round import (
    MIN_TRIALS,
    GateTrials,
    TrialCollector,
    fit_shift,
    gate_round_report,
    judge_gate,
    with_shift,
)
from coe.learning.retraining.state import RoundState
from coe.retrieval.gate import GATE_FILE, Gate, GateThresholds, OutdatedGate


@dataclass(frozen=True, slots=True)
class GateRound:
    """Needs a declared document store, a gate over the router's categories, and trials of that gate in the log."""

    kind: str = GATE

    def judge(self, job: Job) -> Candidate | str | None:
        artifact = job.store(GATE).current()
        if job.registry.retrieval.store is None or artifact is None:
            return None
        version = artifact.manifest.version
        try:
            gate = Gate.load(artifact.folder / GATE_FILE)
        except OutdatedGate as error:
            return str(error)
        if set(gate.categories) != set(job.in_use.router.categories):
            return None
        trials = _load_trials(job, version)
        if trials is None:
            return None
        if len(trials) < MIN_TRIALS:
            return f"{len(trials)} trials are rated, and a round takes {MIN_TRIALS}"
        inputs = _digest(trials)
        tests = job.tests_so_far(GATE, in_use=version, inputs=inputs)
        if tests is None:
            return "no trial is new"
        threshold = GateThresholds.of(gate.cost, job.registry.retrieval.price).insert
        judgement = judge_gate(trials, threshold=threshold, round_=tests + 1, guarded=job.registry.category_names)
        report = gate_round_report(trials, fit_shift(trials), judgement)
        return Candidate(
            RoundState.of(judgement, in_use=version, inputs=inputs, time=job.now),
            replaces=version,
            report=report,
            write_report=partial(_write_report, report=report),
            save=partial(_save, gate, trials, inputs=inputs, report=report),
        )


def _load_trials(job: Job, version: str) -> GateTrials | None:
    """The rated trials of this version of the gate; None where the log has no trial of it."""
    collector = TrialCollector(version)
    try:
        loaded = job.experience(collector.select(job.records()))
    except DataError:
        return None
    return collector.trials(loaded.experience)


def _digest(trials: GateTrials) -> str:
    rated = trials.rated
    return hashlib.sha256(rated.identity.tobytes() + rated.reward.tobytes()).hexdigest()[:16]


def _save(gate: Gate, trials: GateTrials, folder: Path, *, inputs: str, report: Mapping[str, Any]) -> ManifestFields:
    shifted = with_shift(gate, trials)
    shifted.save(folder / GATE_FILE)
    return {"categories": shifted.categories, "data": inputs, "metrics": report}


def _write_report(folder: Path, report: Mapping[str, Any]) -> None:
    (folder / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    rows = [f"| {one['count']} | {one['expected']:+.3f} | {one['seen']:+.3f} |" for one in report["gain"]]
    page = ["# Retrieval gate", "", report["sentence"], ""]
    page += ["| trials | gain expected | gain seen |", "|---|---|---|", *rows, ""]
    (folder / "report.md").write_text("\n".join(page), encoding="utf-8")
