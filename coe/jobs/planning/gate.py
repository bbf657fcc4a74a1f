"""Fits the retrieval gate for `coe plan`, where `coe score --retrieval both` measured what passages change."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from coe.artifacts.kinds import GATE
from coe.learning.evaluation.passage_gain import GAINS_FILE, read_gains
from coe.learning.retraining.gate_fit import GateExamples, fit_gate
from coe.learning.retraining.gate_report import gate_report, plot_calibration
from coe.registry import Registry
from coe.retrieval.gate import GATE_FILE
from coe.runtime.artifact_sync import synced_store
from coe.settings import Settings

CALIBRATION_FILE = "calibration.png"


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
        if find_spec("matplotlib") is not None:
            plot_calibration(report["calibration"], draft / CALIBRATION_FILE)
        data = hashlib.sha256((folder / GAINS_FILE).read_bytes()).hexdigest()[:16]
        artifact = store.publish(draft, categories=gate.categories, data=data, metrics=report)
    store.promote(artifact.manifest.version, by="plan", why=f"fitted on {folder}")
    return report | {"version": artifact.manifest.version}


def load_examples(settings: Settings, registry: Registry, folder: Path) -> GateExamples | None:
    """The pairs of scores, with the posteriors and vectors of the router in use; None without any."""
    gains = read_gains(folder, registry.expert_names)
    if gains is None:
        return None
    import routers
    from coe.runtime.active_state import check_router, load_router

    artifact = check_router(settings)[1]
    router = load_router(registry, artifact)
    return gains.examples(router, routers.load_document_encoder(artifact.folder))
