"""`coe plan` with recipes: arms are planned from recorded answers, published, and used as fitted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from coe.cli import app
from coe.planning.plan import Plan, effective_plan
from coe.recipes.policy import RECIPES_FILE, ArmPolicies
from coe.registry import RecipeSpec, Registry, load
from tests.recipes.planned import (
    ANSWERS,
    CAREFUL,
    DECLARED,
    plan,
    published,
    write_config,
    write_table,
)

PANEL = "recipes:\n  - {name: panel, vote: [a, b]}\n"
COUNCIL = "recipes: [{name: council, fuse: [a, b], by: large}]\n"
WRITING = RecipeSpec(name="council", fuse=("a", "b"), by="large").writing_digest


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def measure(config: Path, writing: str = WRITING, *, prompts: int = 1200, right: float = 0.95) -> None:
    """Answers of the arm council, measured as `coe score --recipe council` does."""
    rows = []
    for row in range(prompts):
        score = float(np.random.default_rng(row).random() < right)
        one = {"benchmark": "own", "prompt_id": str(row), "arm": "council", "writing": writing, "score": score}
        for step, member, written, ms in ((0, "a", 100, 50.0), (0, "b", 200, 80.0), (1, "large", 50, 300.0)):
            used = {"input_tokens": 0, "output_tokens": written, "latency_ms": ms}
            rows.append({**one, "step": step, "member": member, **used})
    write_table(config.parent / "recipe_calls.jsonl", rows)


def policies(config: Path) -> ArmPolicies:
    return ArmPolicies.from_json((published(config) / RECIPES_FILE).read_bytes())


def problem_of(config: Path) -> Any:
    """Return the problem of the published plan."""
    return Plan.read(published(config)).problem


def declaration(config: Path) -> Registry:
    return load(config, environ={})


def test_an_arm_is_planned_where_it_beats_every_expert_within_the_budget(config: Path) -> None:
    report = plan(config)
    chosen = {row["category"]: row["expert"] for row in report["assignment"]}
    assert chosen["code"] == "careful"
    assert report["recipes"] == {"careful": [["a", "b"], ["large"]]}
    assert report["used"]["mean_cost"] <= 10
    config.write_text(DECLARED)
    assert plan(config)["quality"] < report["quality"] - 0.02


def test_auto_proposes_recipes_that_are_served_without_being_declared(config: Path) -> None:
    config.write_text(DECLARED + "recipes: auto\n")
    report = plan(config)
    assert "auto-1" in report["recipes"]
    found = Plan.read(published(config))
    extended = declaration(config).with_proposed(found.policies.steps)
    assert "auto-1" in effective_plan(found, extended).assignment.experts
    assert extended.digest == declaration(config).digest
    assert extended.arm("auto-1").context_length == 8192
    config.write_text(DECLARED)
    assert declaration(config).with_proposed(found.policies.steps) == declaration(config)


def test_a_bound_that_the_probes_do_not_show_leaves_the_recipe_out_with_its_line_and_the_remedy(config: Path) -> None:
    text = DECLARED.replace("mean_cost: 10", "mean_cost: 40")
    config.write_text(f"{text}{PANEL}  - {{name: careful, cascade: [[a, b], large], max_loss: 0.0001}}\n")
    line = len(text.splitlines()) + 3
    report = plan(config)
    told = f"experts.yaml:{line}: the 1200 probes do not show a loss below max_loss 0.0001"
    assert report["left_out"]["recipes"]["careful"].startswith(told)
    assert set(report["recipes"]) == {"panel"}
    result = CliRunner().invoke(app, ["plan", str(config.parent), "--config", str(config), "--dry-run"])
    assert f"note: experts.yaml:{line}: recipe 'careful' is not planned: the 1200 probes" in result.stderr
    assert "score more probes, or raise max_loss" in result.stderr


@pytest.mark.parametrize("bound", ["", ", max_loss: 0.1"])
def test_without_recorded_answers_recipes_are_left_out_and_the_plan_stands(config: Path, bound: str) -> None:
    (config.parent / "answers.jsonl").unlink()
    text = DECLARED.replace("mean_cost: 10", "mean_cost: 40")
    config.write_text(text + CAREFUL.replace("}]", f"{bound}}}]"))
    told = f"experts.yaml:{len(text.splitlines()) + 1}: the scores have no recorded answers; run `coe score` again"
    assert plan(config)["left_out"]["recipes"]["careful"] == told
    assert not (published(config) / RECIPES_FILE).exists()


# ---------------------------------------------------------------------------------------------- recipes that write


def test_a_measured_fuse_is_a_column_with_its_quality_cost_latency_and_calls(config: Path) -> None:
    config.write_text(DECLARED.replace("mean_cost: 10", "mean_cost: 20") + COUNCIL)
    measure(config)
    report = plan(config)
    assert report["left_out"]["recipes"] == {}
    assert report["recipes"] == {"council": [["a", "b"], ["large"]]}
    assert {row["expert"] for row in report["assignment"] if row["category"] != "general"} == {"council"}
    problem = problem_of(config)
    column, uses = problem.experts.index("council"), problem.uses
    assert uses.cost[:, column] == pytest.approx(np.full(3, (100 * 10 + 200 * 10 + 50 * 120) / 1000))
    assert uses.active_b[:, column] == pytest.approx(np.full(3, 1 + 1 + 12))
    assert uses.latency_ms[:, column] == pytest.approx(np.full(3, 80 + 300))  # the panel at the same time
    assert uses.calls["council"].tolist() == [[1, 1, 1]] * 3
    assert problem.members["council"] == ("a", "b", "large")
    assert problem.quality[0, column] == pytest.approx(0.95, abs=0.05)


@pytest.mark.parametrize(
    ("writing", "prompts", "reason"),
    [
        (None, 0, "not measured; `coe score PROBES --out FOLDER --recipe council` calls it for real"),
        (
            WRITING,
            59,
            "it is measured on 59 probes, and 60 are needed; `coe score PROBES --out FOLDER --recipe council`",
        ),
        ("another", 1200, "not measured; `coe score PROBES --out FOLDER --recipe council` calls it for real"),
    ],
)
def test_without_a_measurement_a_fuse_is_left_out_with_the_command(
    config: Path, writing: str | None, prompts: int, reason: str
) -> None:
    config.write_text(DECLARED + COUNCIL)
    if writing is not None:
        measure(config, writing, prompts=prompts)
    report = plan(config)
    assert reason in report["left_out"]["recipes"]["council"]
    assert report["recipes"] == {}
    assert {row["expert"] for row in report["assignment"]} <= {"a", "b", "large"}
    assert not (published(config) / RECIPES_FILE).exists()


def test_a_planned_fuse_is_served_until_its_steps_or_instruction_change(config: Path) -> None:
    config.write_text(DECLARED.replace("mean_cost: 10", "mean_cost: 20") + COUNCIL)
    measure(config)
    plan(config)
    found = Plan.read(published(config))
    effective = effective_plan(found, declaration(config))
    assert effective.assignment.choice[0] == "council"
    assert not effective.consequences
    for changed in (
        COUNCIL.replace("by: large", "by: large, instruction: Other."),
        COUNCIL.replace("[a, b]", "[b, a]"),
        COUNCIL.replace("fuse: [a, b], by: large", "cascade: [[a, b], large]"),
    ):
        config.write_text(DECLARED + changed)
        other = effective_plan(found, declaration(config))
        assert other.assignment.experts == ("a", "b", "large")
        assert any("council" in one.sentence and one.replan for one in other.consequences)
    config.write_text(DECLARED + COUNCIL.replace("[a, b]", "[b, a]"))
    sentences = [one.sentence for one in effective_plan(found, declaration(config)).consequences]
    assert any("run `coe score --recipe council` and `coe plan`" in one for one in sentences)


# ------------------------------------------------------------------------------------------- cascades with a judge

JUDGED = "recipes: [{name: graded, cascade: [a, large], signal: judge, judge: b}]\n"


def grade(config: Path, *, prompts: int = 1200, judge: str = "b", reliable: float = 0.95) -> None:
    """Grades of the answers of a, as `coe score --recipe graded` collects them."""
    rows = []
    for row in range(prompts):
        right = ANSWERS.scores[row, 0] > 0
        told = right if np.random.default_rng(row).random() < reliable else not right
        used = {"input_tokens": 0, "output_tokens": 10, "latency_ms": 20.0}
        one = {"benchmark": "own", "prompt_id": str(row), "model": "a", "judge": judge}
        rows.append({**one, "grade": None if row % 50 == 0 else 9 if told else 2, **used})
    write_table(config.parent / "grades.jsonl", rows)


def test_a_cascade_with_a_judge_is_planned_with_the_rule_that_its_grades_fit(config: Path) -> None:
    declared = DECLARED.replace("mean_cost: 10", "mean_cost: 20")
    config.write_text(declared + JUDGED.replace(", signal: judge, judge: b", ""))
    by_agreement = plan(config)["quality"]
    config.write_text(declared + JUDGED)
    grade(config)
    report = plan(config)
    assert report["recipes"] == {"graded": [["a"], ["large"]]}
    assert report["quality"] > by_agreement + 0.03
    problem = problem_of(config)
    assert problem.members["graded"] == ("a", "large", "b")
    column, calls = problem.experts.index("graded"), problem.uses.calls["graded"]
    assert calls[:, 0].tolist() == calls[:, 2].tolist() == [1, 1, 1]
    assert 0.2 < calls[0, 1] < 0.6
    assert problem.uses.cost[:, column] == pytest.approx(1.0 + 0.1 + 12.0 * calls[:, 1], rel=0.02)
    assert problem.uses.latency_ms[:, column] == pytest.approx(100 + 20 + 100 * calls[:, 1], rel=0.02)
    policy = policies(config).by_arm["graded"]
    rule = policy.steps[0].graded
    assert policy.judge == "b"
    assert rule is not None
    good, bad = rule.probability(np.array([9.0, 2.0]))
    assert good > 0.85 > 0.2 > bad
    found = effective_plan(Plan.read(published(config)), declaration(config))
    assert not found.consequences
    config.write_text(declared + JUDGED.replace("[a, large], signal: judge, judge: b", "[a, large]"))
    assert effective_plan(Plan.read(published(config)), declaration(config)).assignment.experts == (
        "a",
        "b",
        "large",
    )


@pytest.mark.parametrize(
    ("graded", "reason"),
    [
        ({}, "no grades of its judge 'b'; `coe score PROBES --out FOLDER --recipe graded` collects them"),
        ({"judge": "another"}, "no grades of its judge 'b'"),
        ({"prompts": 1199}, "grades of its judge 'b' are recorded for 1199 of 1200 probes; `coe score PROBES"),
    ],
)
def test_without_grades_the_cascade_is_left_out_with_the_command(
    config: Path, graded: dict[str, Any], reason: str
) -> None:
    config.write_text(DECLARED + JUDGED)
    if graded:
        grade(config, **graded)
    report = plan(config)
    assert reason in report["left_out"]["recipes"]["graded"]
    assert report["recipes"] == {}
