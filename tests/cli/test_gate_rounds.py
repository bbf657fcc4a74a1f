"""`coe retrain` and the gate: trials in the log become a gate in use, which can be rolled back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from coe.artifacts.active_state import load_active_state
from coe.records.feedback import Feedback
from coe.retrieval.gate import CUES, GATE_FILE, Gate, LogOddsModel, RetrievalCost
from tests.cli.logged_service import LoggedService

CATEGORIES, EXPERTS = ("cooking", "astronomy", "football", "general"), ("chef", "generalist")


def fitted(service: LoggedService) -> str:
    """A gate that expects nothing of passages."""
    m, k = len(CATEGORIES), len(EXPERTS)
    never = LogOddsModel(
        np.zeros(m + 1), np.zeros(m + 1 + CUES + 32), np.full((2, m, k), -30.0), np.array([1.0, 0.0, 0.0])
    )
    gate = Gate(
        CATEGORIES, EXPERTS, never, never, np.ones(k), np.zeros((m, k)), np.zeros(k), RetrievalCost(200.0, 0.01)
    )
    store = service.store("gate")
    with store.draft() as draft:
        gate.save(draft / GATE_FILE)
        version = store.publish(draft, categories=CATEGORIES, data="", metrics={}).manifest.version
    store.promote(version)
    return version


def serve(service: LoggedService, count: int, *, trial: str) -> None:
    """Exploration trials of the gate, in which passages help the generalist with what it does not know."""
    random = np.random.default_rng(1)
    made = []
    for record, event in service._requests(count, (), {}):
        given = bool(random.random() < 0.5)
        helped = given and record.expert == "generalist" and record.category in ("cooking", "football")
        score = 1.0 if helped and random.random() < 0.8 else float(event.value)
        made.append(
            (
                replace(record, retrieval="used" if given else "withheld", trial=trial, gain=0.0, gate=0.0),
                Feedback(event.event_id, event.request_id, event.time, "score", score, tenant=event.tenant),
            )
        )
    service.append([record for record, _ in made], [event for _, event in made])


def test_rated_trials_change_the_gate_in_use_and_the_change_can_be_rolled_back(service: LoggedService) -> None:
    service.declare(retrieval={"store": "lancedb:///documents"})
    service.serve(60)
    assert "gate" not in service.report("retrain")
    first = fitted(service)
    serve(service, 100, trial=first)
    assert "100 trials are rated, and a round takes 200" in service.report("retrain")["gate"]["sentence"]
    serve(service, 1500, trial=first)
    dry = service.report("retrain", "--dry-run")["gate"]
    assert (dry["version"], service.store("gate").in_use()) == (None, first)
    found = service.report("retrain")["gate"]
    assert found["promoted"], found["sentence"]
    assert service.store("gate").in_use() == found["version"] != first
    names = load_active_state(service.settings).router.categories
    gate = Gate.load(Path(found["folder"]) / GATE_FILE).align(names, EXPERTS)
    gains = {name: gate.estimate_fast(np.eye(4)[row]).gain[1] for row, name in enumerate(names)}
    assert gains["cooking"] > 0.2
    assert gains["astronomy"] < 0.1
    report = json.loads((Path(found["folder"]) / "report.json").read_text())
    assert report["trials"] == 1600
    assert "gate" not in service.report("retrain")
    assert service.report("rollback", "gate") == {"kind": "gate", "was": found["version"], "in_use": first}
