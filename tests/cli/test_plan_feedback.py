"""`coe plan` after `coe retrain`: what feedback has moved is kept, or dropped on request, and reported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from coe.artifacts.active_state import load_active_state
from coe.errors import DataError
from coe.planning import Plan
from coe.registry import RecipeSpec
from tests.cli.logged_service import DECLARED, TRUTH, LoggedService
from tests.routers.conftest import examples

MEASURED = {"cooking": "generalist", "football": "chef", "astronomy": "generalist"}
"""The better expert of each category by the probes. Users disagree about cooking."""
ARMS = ("graded", "improve")
"""Columns of a plan: recipes that write come last."""


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


def test_probes_judge_arms_by_the_recorded_answers(service: LoggedService, panel: Path) -> None:
    service.serve(1500)
    found = service.retrain("--probes", panel)
    sources = {one["source"] for one in found["report"]["evidence"]}
    assert sources == {"held-out set", "logged traffic"}
    (panel / "answers.jsonl").unlink()
    service.serve(10)
    with pytest.raises(DataError, match="the arms of recipes cannot be measured: the scores have no recorded"):
        service.retrain("--probes", panel)


@pytest.fixture
def mixed(service: LoggedService, scores: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan with a chain, declared first, and a cascade with a judge; the folder of its scores."""
    rows = [json.loads(line) for line in (scores / "scores.jsonl").read_text().splitlines()]
    used = {"input_tokens": 5, "output_tokens": 5, "latency_ms": 9.0}
    answers = [row | {"answer": "A" if row["score"] > 0.5 else "B", **used} for row in rows]
    for table in (rows, answers):
        table += [row | {"model": "critic", "score": 0.4} for row in table if row["model"] == "chef"]
    chain = RecipeSpec(name="improve", chain=("chef", "generalist"))
    calls, grades = [], []
    for row in (row for row in rows if row["model"] == "chef"):
        one = {"benchmark": "own", "prompt_id": row["prompt_id"]}
        arm = {**one, "arm": "improve", "writing": chain.writing_digest, "score": 0.8, **used}
        calls += [arm | {"step": step, "member": name} for step, name in enumerate(("chef", "generalist"))]
        grades.append({**one, "model": "chef", "judge": "critic", "grade": 9 if row["score"] > 0.5 else 2, **used})
    for name, table in (("scores", rows), ("answers", answers), ("recipe_calls", calls), ("grades", grades)):
        (scores / f"{name}.jsonl").write_text("\n".join(map(json.dumps, table)))
    critic = DECLARED["experts"][0] | {"name": "critic"}
    service.declare(
        experts=[
            one | {"prices": {"input": price, "output": price}}
            for one, price in zip((*DECLARED["experts"], critic), (1, 10, 0.1), strict=True)
        ],
        recipes=[
            {"name": "improve", "chain": ["chef", "generalist"]},
            {"name": "graded", "cascade": ["chef", "generalist"], "signal": "judge", "judge": "critic"},
        ],
    )
    monkeypatch.setitem(TRUTH, "critic", {})
    for arm in ARMS:
        monkeypatch.setitem(TRUTH, arm, TRUTH["generalist"] | {"football": 0.1})
    return scores


def test_a_plan_with_a_chain_and_a_judge_learns_with_the_planned_uses_of_its_arms(
    service: LoggedService, mixed: Path
) -> None:
    planned = service.report("plan", mixed)
    assert set(planned["recipes"]) == {"improve", "graded"}, planned["left_out"]
    then = plan_in_use(service).problem
    service.serve(1500)
    found = service.retrain()
    assert found["promoted"], found["sentence"]
    assert set(load_active_state(service.settings).policies.written) == {"improve"}
    now = plan_in_use(service).problem
    assert now.experts == then.experts == ("chef", "generalist", "critic", *ARMS)
    assert (now.members, now.uses.calls.keys()) == (then.members, then.uses.calls.keys())
    for arm in ARMS:
        row, earlier = now.categories.index("football"), then.categories.index("football")
        column = now.experts.index(arm)
        assert now.uses.cost is not None
        assert then.uses.cost is not None
        assert now.uses.cost[row, column] == pytest.approx(then.uses.cost[earlier, column]) != 0


def test_a_damaged_plan_in_use_does_not_stop_a_new_one(service: LoggedService, scores: Path) -> None:
    version = service.report("plan", scores) and service.store().in_use()
    assert version is not None
    (service.store().published(version).folder / "plan.json").write_text("{")
    service.run("plan", scores, "--deviations", "2")
    assert service.store().in_use() not in (None, version)
