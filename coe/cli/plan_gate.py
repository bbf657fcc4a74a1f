"""The part of `coe plan` that fits the retrieval gate, where `coe score --retrieval both` measured what passages do."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from coe.learning.evaluation.passage_gain import GAINS, read_gains
from coe.learning.retraining.gate_fit import Trials, fit_gate
from coe.learning.retraining.gate_report import gate_report, plot_calibration
from coe.registry import Registry
from coe.retrieval.gate import FILE
from coe.runtime.artifact_sync import synced_store
from coe.settings import Settings

GATE, CALIBRATION = "gate", "calibration.png"


def plan_gate(settings: Settings, registry: Registry, folder: Path, *, dry_run: bool) -> dict[str, Any] | None:
    """Fit the gate on the folder's pairs of scores and put it into use; its report, None where there are no pairs.
    Raises DataError, or ArtifactError where no router is trained whose features it could read."""
    trials = measured(settings, registry, folder)
    if trials is None:
        return None
    gate = fit_gate(trials)
    report = gate_report(trials, registry.retrieval.price)
    if dry_run:
        return report
    store = synced_store(settings, GATE)
    with store.draft() as draft:
        gate.save(draft / FILE)
        if find_spec("matplotlib") is not None:
            plot_calibration(report["calibration"], draft / CALIBRATION)
        data = hashlib.sha256((folder / GAINS).read_bytes()).hexdigest()[:16]
        artifact = store.publish(draft, categories=gate.categories, data=data, metrics=report)
    store.promote(artifact.manifest.version, by="plan", why=f"fitted on {folder}")
    return report | {"version": artifact.manifest.version}


def measured(settings: Settings, registry: Registry, folder: Path) -> Trials | None:
    """The pairs of scores with what the router in use sees of their prompts; None without any."""
    gains = read_gains(folder, registry.expert_names)
    if gains is None:
        return None
    import routers
    from coe.runtime.active_state import check_router, load_router

    artifact = check_router(settings)[1]
    router = load_router(registry, artifact)
    return gains.trials(router, routers.load_document_encoder(artifact.folder))


def told(report: dict[str, Any]) -> list[str]:
    """The report in lines."""
    lines = [f"\n{'retrieval':16} {'never':>7} {'always':>7} {'gated':>7} {'opened':>7} {'tokens saved':>13}"]
    for name, found in {**report["experts"], "all": report["all"]}.items():
        quality = " ".join(f"{found[policy]:7.3f}" for policy in ("never", "always", "gated"))
        lines.append(f"{name:16} {quality} {found['opened']:7.1%} {found['saved']:13.1%}")
    return lines
