"""`coe plan` after `coe retrain`: what feedback has moved is kept, or dropped on request, and reported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from coe.artifacts.active_state import load_active_state
from coe.planning.plan import Plan
from coe.registry import load
from coe.reports.response import demoted
from tests.cli.logged_service import TRUTH, LoggedService
from tests.routers.conftest import examples

MEASURED = {"cooking": "generalist", "football": "chef", "astronomy": "generalist"}
"""The better expert of each category by the probes. Users disagree about cooking."""


@pytest.fixture
def scores(service: LoggedService) -> Path:
    """A folder as `coe score` writes it, with the same number of prompts for each category."""
    folder = service.config.with_name("quality")
    folder.mkdir()
    prompts, results = [], []
    for number, example in enumerate(one for one in examples(count=60) if one.category in MEASURED):
        one = {"benchmark": "own", "prompt_id": str(number)}
        prompts.append({**one, "prompt": example.prompt, "category": example.category, "label": ""})
        for name in ("chef", "generalist"):
            good = MEASURED[example.category] == name
            results.append({**one, "model": name, "score": 0.8 if good else 0.4})
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (folder / "scores.jsonl").write_text("\n".join(map(json.dumps, results)))
    return folder


def plan_in_use(service: LoggedService) -> Plan:
    version = service.store().in_use()
    assert version is not None
    return Plan.read(service.store().published(version).folder)


def test_a_new_plan_keeps_the_feedback_of_moved_categories_unless_it_is_dropped(
    service: LoggedService, scores: Path
) -> None:
    service.report("plan", scores)
    before = plan_in_use(service)
    assert {name: service.choices()[name] for name in MEASURED} == MEASURED
    service.serve(1500)
    found = service.retrain()
    assert found["promoted"], found["sentence"]
    learned = plan_in_use(service)
    assert learned.measured is not None
    again = learned.measured.over(before.table.categories, before.table.experts)
    np.testing.assert_array_equal(again.mean, before.table.mean)
    np.testing.assert_array_equal(again.count, before.table.count)
    assert [move["category"] for move in found["report"]["moves"] if move["verdict"] == "better"] == ["cooking"]
    assert service.choices()["cooking"] == "chef"

    assert "kept from feedback: cooking (moved by coe retrain" in service.run("plan", scores)
    assert service.choices()["cooking"] == "chef"
    assert service.report("plan", scores)["feedback"] == {"kept": ["cooking"], "dropped": []}
    assert service.choices()["cooking"] == "chef"

    dropped = service.run("plan", scores, "--drop-feedback")
    assert "dropped: the feedback on cooking, which coe retrain had moved" in dropped
    assert {name: service.choices()[name] for name in MEASURED} == MEASURED


def test_a_demotion_lasts_until_the_expert_is_measured_again(service: LoggedService, scores: Path) -> None:
    service.report("plan", scores)
    drop = {"category": "cooking", "expected": 0.8, "found": 0.1, "ratings": 20}
    registry = load(service.config, environ={})
    demoted(service.settings, registry, [{"expert": "generalist", "drops": [drop], "sentence": ""}])
    after = MEASURED | {"cooking": "chef"}
    for command in (("plan", scores), ("status",)):
        assert "ratings count in cooking until coe score --again generalist" in service.run(*command)
        assert {name: service.choices()[name] for name in MEASURED} == after
    service.serve(200)
    service.retrain("--probes", scores)
    assert service.choices()["cooking"] == "chef"
    rows = [json.loads(line) for line in (scores / "scores.jsonl").read_text().splitlines()]
    rows = [row | ({"time": 1.0} if row["model"] == "generalist" else {}) for row in rows]
    (scores / "scores.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "ratings count" not in service.run("plan", scores)
    assert {name: service.choices()[name] for name in MEASURED} == MEASURED


@pytest.fixture
def panel(service: LoggedService, scores: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan with a recipe, whose answers users like less than the chef's for football; the folder of its scores."""
    rows = [json.loads(line) for line in (scores / "scores.jsonl").read_text().splitlines()]
    answers = [row | {"answer": "A" if row["score"] > 0.5 else "B", "output_tokens": 5} for row in rows]
    (scores / "answers.jsonl").write_text("\n".join(map(json.dumps, answers)))
    service.declare(recipes=[{"name": "panel", "vote": ["chef", "generalist"]}])
    service.report("plan", scores)
    assert "panel" in load_active_state(service.settings).assignment.experts
    monkeypatch.setitem(TRUTH, "panel", TRUTH["generalist"] | {"football": 0.5})
    monkeypatch.setitem(TRUTH["chef"], "football", 0.9)
    return scores


def test_feedback_moves_categories_from_and_to_an_arm_which_keeps_its_policy(
    service: LoggedService, panel: Path
) -> None:
    before = load_active_state(service.settings).policies
    assert service.choices()["football"] == "panel"
    service.serve(1500)
    found = service.retrain()
    assert found["promoted"], found["sentence"]
    moved = [
        (one["category"], one["current"], one["target"])
        for one in found["report"]["moves"]
        if one["verdict"] == "better"
    ]
    assert ("football", "panel", "chef") in moved
    assert set(found["report"]["estimates"]) == {"current", "candidate"}
    after = load_active_state(service.settings)
    assert service.choices()["football"] == "chef"
    assert (after.policies.to_json(), set(after.policies.by_arm)) == (before.to_json(), {"panel"})
    assert plan_in_use(service).problem.members == {"panel": ("chef", "generalist")}

    TRUTH["panel"]["football"], TRUTH["chef"]["football"] = 1.0, 0.05
    service.serve(4000)
    found = service.retrain()
    assert found["promoted"], found["sentence"]
    assert service.choices()["football"] == "panel"
    again = service.report("plan", panel)
    assert "football" in again["feedback"]["kept"]
    assert service.choices()["football"] == "panel"


def test_a_damaged_plan_in_use_does_not_stop_a_new_one(service: LoggedService, scores: Path) -> None:
    version = service.report("plan", scores) and service.store().in_use()
    assert version is not None
    (service.store().published(version).folder / "plan.json").write_text("{")
    service.run("plan", scores)
    assert set(plan_in_use(service).assignment.choice) == set(service.choices().values())
