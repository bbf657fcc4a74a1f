"""`coe plan` with recipes: arms are planned from recorded answers, published, and used as fitted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from coe.cli import app
from coe.planning import Plan, effective_plan
from coe.recipes.policy_file import RECIPES_FILE, ArmPolicies
from coe.registry import RecipeSpec, Registry, load
from tests.recipes.planned import ANSWERS, CAREFUL, DECLARED, plan, published, write_config, write_table

PANEL = "recipes: [{name: panel, vote: [a, b]}]\n"
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


def test_the_planned_cost_of_an_arm_is_what_its_calls_cost(config: Path) -> None:
    report = plan(config)
    folder = published(config)
    problem = Plan.read(folder).problem
    policies = ArmPolicies.from_json((folder / RECIPES_FILE).read_bytes()).by_arm
    column = problem.experts.index("careful")
    calls = problem.uses.calls["careful"]
    assert problem.uses.cost is not None
    assert problem.uses.cost[:, column] == pytest.approx(calls @ np.array([1.0, 1.0, 12.0]), rel=0.02)
    assert set(policies) == {"careful"} <= set(report["prices"])


def test_a_declared_cap_lowers_the_planned_cost(config: Path) -> None:
    rows = [json.loads(line) for line in (config.parent / "answers.jsonl").read_text().splitlines()]
    long = [row for row in rows if row["model"] == "large" and int(row["prompt_id"]) % 5 == 0]
    for row in long:
        row["output_tokens"] = 300
    write_table(config.parent / "answers.jsonl", rows)
    config.write_text(DECLARED + CAREFUL.replace("}]", ", max_tokens: {large: 200}}]"))
    plan(config)
    problem = Plan.read(published(config)).problem
    calls, column = problem.uses.calls["careful"][:2], problem.experts.index("careful")
    assert problem.uses.cost is not None
    expected = calls @ np.array([1.0, 1.0, 12 * (0.8 * 1 + 0.2 * 2)])
    assert problem.uses.cost[:2, column] == pytest.approx(expected, rel=0.05)


def test_an_unchanged_declaration_keeps_the_arms_and_changed_steps_drop_them(config: Path) -> None:
    plan(config)
    found = Plan.read(published(config))
    effective = effective_plan(found, declaration(config))
    assert effective.assignment.experts == ("a", "b", "large", "careful")
    assert np.isfinite(effective.assignment.quality[0, 3:]).any()
    assert not effective.consequences
    config.write_text(DECLARED + CAREFUL.replace("[[a, b], large]", "[a, b, large]"))
    changed = effective_plan(found, declaration(config))
    assert changed.assignment.experts == ("a", "b", "large")
    assert any("careful" in one.sentence and one.replan for one in changed.consequences)


def test_auto_proposes_recipes_that_are_served_without_being_declared(config: Path) -> None:
    config.write_text(DECLARED + "recipes: auto\n")
    report = plan(config)
    assert "auto-1" in report["recipes"]
    found = Plan.read(published(config))
    extended = found.declaration(declaration(config))
    assert "auto-1" in effective_plan(found, extended).assignment.experts
    assert extended.digest == declaration(config).digest
    assert extended.arm("auto-1").context_length == 8192
    config.write_text(DECLARED)
    assert found.declaration(declaration(config)) == declaration(config)


def test_a_bound_that_the_probes_cannot_show_leaves_the_recipe_out_with_the_remedy(config: Path) -> None:
    config.write_text(DECLARED + CAREFUL.replace("[[a, b], large]", "[a, large], max_loss: 0.001"))
    report = plan(config)
    told = "the 400 held-out probes (a third of 1200) do not show a loss below max_loss 0.001"
    assert told in report["left_out"]["recipes"]["careful"]
    assert report["recipes"] == {}
    assert {row["expert"] for row in report["assignment"]} <= {"a", "b", "large"}


def test_a_bound_that_the_probes_show_keeps_the_cheapest_policy_that_keeps_it(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coe.recipes.fitting.replay.DECLARED_PRICE", 0.05)
    prices = {}
    for bound in (0.5, 0.1):
        config.write_text(DECLARED + CAREFUL.replace("[[a, b], large]", f"[a, large], max_loss: {bound}"))
        assert "careful" in plan(config)["prices"]
        policies = ArmPolicies.from_json((published(config) / RECIPES_FILE).read_bytes()).over(("law", "code"))
        policy = policies.by_arm["careful"]
        assert policy.max_loss == bound
        prices[bound] = policy.price
    assert prices == {0.5: 0.05, 0.1: 0.004}


def test_without_recorded_answers_recipes_are_left_out_and_the_plan_stands(config: Path) -> None:
    (config.parent / "answers.jsonl").unlink()
    report = plan(config)
    assert "run `coe score` again" in report["left_out"]["recipes"]["careful"]
    assert not (published(config) / RECIPES_FILE).exists()


def test_a_member_without_scores_leaves_its_recipe_out(config: Path) -> None:
    extra = "  - {name: new, model: m, runtime: external, base_url: 'http://h/v1', active_parameters_b: 1}\n"
    declared = DECLARED.replace("assignment:", extra + "assignment:").replace("budget: {mean_cost: 10}\n", "")
    config.write_text(declared + CAREFUL.replace("[a, b]", "[a, new]"))
    assert "no scores of new" in plan(config)["left_out"]["recipes"]["careful"]


def test_a_recipe_that_is_removed_is_not_served_as_a_proposed_one(config: Path) -> None:
    config.write_text(DECLARED + CAREFUL.replace("recipes: [", "recipes: [auto, "))
    report = plan(config)
    assert "careful" in report["recipes"]
    config.write_text(DECLARED + "recipes: auto\n")
    found = Plan.read(published(config)).declaration(declaration(config))
    assert {recipe.name for recipe in found.declared_recipes} == set(report["recipes"]) - {"careful"}


def test_solving_for_another_budget_keeps_proposed_recipes(config: Path) -> None:
    config.write_text(DECLARED + "recipes: auto\n")
    plan(config)
    result = CliRunner().invoke(app, ["solve", "--config", str(config)], input='{"mean_cost": 10}\n')
    assert result.exit_code == 0, result.output
    assert "auto-1" in json.loads(result.stdout)["plan"]["prices"]


def test_arms_have_the_latency_that_is_declared_where_none_was_measured(config: Path) -> None:
    rows = [json.loads(line) for line in (config.parent / "answers.jsonl").read_text().splitlines()]
    write_table(config.parent / "answers.jsonl", [row | {"latency_ms": None} for row in rows])
    declared = DECLARED.replace("active_parameters_b: 1,", "active_parameters_b: 1, latency_ms: 100,")
    declared = declared.replace("active_parameters_b: 12,", "active_parameters_b: 12, latency_ms: 900,")
    config.write_text(declared.replace("mean_cost: 10", "mean_latency_ms: 800") + PANEL)
    assert plan(config)["used"]["mean_latency_ms"] <= 800
    problem = Plan.read(published(config)).problem
    assert problem.uses.latency_ms is not None
    assert problem.uses.latency_ms[0, 3] == pytest.approx(100.0)  # both small members at the same time


def test_arms_are_priced_by_assumed_tokens_like_experts_where_none_were_counted(config: Path) -> None:
    rows = [json.loads(line) for line in (config.parent / "answers.jsonl").read_text().splitlines()]
    write_table(config.parent / "answers.jsonl", [row | {"input_tokens": None} for row in rows])
    config.write_text(DECLARED.replace("mean_cost: 10", "mean_cost: 30") + PANEL)
    plan(config)
    problem = Plan.read(published(config)).problem
    assert problem.uses.cost is not None
    assert problem.uses.cost[0, 3] == pytest.approx(problem.uses.cost[0, 0] + problem.uses.cost[0, 1], rel=0.05)


# ---------------------------------------------------------------------------------------------- recipes that write


def test_a_measured_fuse_is_a_column_with_its_quality_cost_latency_and_calls(config: Path) -> None:
    config.write_text(DECLARED.replace("mean_cost: 10", "mean_cost: 20") + COUNCIL)
    measure(config)
    report = plan(config)
    assert report["left_out"]["recipes"] == {}
    assert report["recipes"] == {"council": [["a", "b"], ["large"]]}
    assert {row["expert"] for row in report["assignment"] if row["category"] != "general"} == {"council"}
    problem = Plan.read(published(config)).problem
    column, uses = problem.experts.index("council"), problem.uses
    assert uses.cost is not None
    assert uses.active_b is not None
    assert uses.latency_ms is not None
    assert uses.cost[:, column] == pytest.approx(np.full(3, (100 * 10 + 200 * 10 + 50 * 120) / 1000))
    assert uses.active_b[:, column] == pytest.approx(np.full(3, 1 + 1 + 12))
    assert uses.latency_ms[:, column] == pytest.approx(np.full(3, 80 + 300))  # the panel at the same time
    assert uses.calls["council"].tolist() == [[1, 1, 1]] * 3
    assert problem.members["council"] == ("a", "b", "large")
    assert problem.quality[0, column] == pytest.approx(0.95, abs=0.05)


def test_a_plan_on_the_present_prices_of_the_members(config: Path) -> None:
    declared = DECLARED.replace("mean_cost: 10", "mean_cost: 90").replace("output: 120", "output: 240")
    config.write_text(declared + COUNCIL)
    measure(config)
    plan(config)
    problem = Plan.read(published(config)).problem
    assert problem.uses.cost is not None
    assert problem.uses.cost[0, 3] == pytest.approx((300 * 10 + 50 * 240) / 1000)


def test_calls_of_one_member_are_summed(config: Path) -> None:
    config.write_text(DECLARED.replace("mean_cost: 10", "mean_cost: 90") + COUNCIL.replace("by: large", "by: a"))
    measure(config, RecipeSpec(name="council", fuse=("a", "b"), by="a").writing_digest)
    path = config.parent / "recipe_calls.jsonl"
    path.write_text(path.read_text().replace('"large"', '"a"'))
    plan(config)
    problem = Plan.read(published(config)).problem
    assert problem.members["council"] == ("a", "b")
    assert problem.uses.calls["council"].tolist() == [[2, 1]] * 3


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


def test_answers_of_other_members_or_steps_do_not_count(config: Path) -> None:
    config.write_text(DECLARED + COUNCIL.replace("[a, b]", "[b, a]"))
    measure(config)
    assert "not measured" in plan(config)["left_out"]["recipes"]["council"]


def test_a_fuse_and_a_cascade_are_planned_together(config: Path) -> None:
    config.write_text(DECLARED + CAREFUL.replace("]\n", ", {name: council, fuse: [a, b], by: large}]\n"))
    measure(config, right=0.5)
    report = plan(config)
    assert set(report["recipes"]) == {"careful", "council"}
    found = effective_plan(Plan.read(published(config)), declaration(config))
    arms = ("careful", "council")
    assert found.assignment.experts == ("a", "b", "large", *arms)
    assert np.isfinite(found.assignment.quality[0]).all()


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


def test_wrong_measured_answers_are_refused(config: Path) -> None:
    config.write_text(DECLARED + COUNCIL)
    measure(config, prompts=60)
    path = config.parent / "recipe_calls.jsonl"
    path.write_text(path.read_text().replace('"score": 1.0', '"score": 7.0'))
    result = CliRunner().invoke(app, ["plan", str(config.parent), "--config", str(config)])
    assert result.exit_code != 0
    assert "scores are not in 0 to 1" in str(result.exception) + result.output


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
    problem = Plan.read(published(config)).problem
    assert problem.members["graded"] == ("a", "large", "b")
    column, calls = problem.experts.index("graded"), problem.uses.calls["graded"]
    assert calls[:, 0].tolist() == calls[:, 2].tolist() == [1, 1, 1]
    assert 0.2 < calls[0, 1] < 0.6
    assert problem.uses.cost is not None
    assert problem.uses.latency_ms is not None
    assert problem.uses.cost[:, column] == pytest.approx(1.0 + 0.1 + 12.0 * calls[:, 1], rel=0.02)
    assert problem.uses.latency_ms[:, column] == pytest.approx(100 + 20 + 100 * calls[:, 1], rel=0.02)
    policy = ArmPolicies.from_json((published(config) / RECIPES_FILE).read_bytes()).by_arm["graded"]
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


def test_a_bound_on_the_loss_holds_for_a_cascade_with_a_judge_too(config: Path) -> None:
    declared = DECLARED.replace("mean_cost: 10", "mean_cost: 20")
    config.write_text(declared + JUDGED.replace("judge: b", "judge: b, max_loss: 0.1"))
    grade(config)
    assert "graded" in plan(config)["prices"]
    grade(config, reliable=0.5)  # grades that say nothing
    config.write_text(declared + JUDGED.replace("judge: b", "judge: b, max_loss: 0.001"))
    assert "max_loss 0.001" in plan(config)["left_out"]["recipes"]["graded"]


def test_wrong_grades_are_refused(config: Path) -> None:
    config.write_text(DECLARED + JUDGED)
    grade(config, prompts=60)
    path = config.parent / "grades.jsonl"
    path.write_text(path.read_text().replace('"grade": 9', '"grade": 11'))
    result = CliRunner().invoke(app, ["plan", str(config.parent), "--config", str(config)])
    assert result.exit_code != 0
    assert "grades are not in 0 to 10" in str(result.exception) + result.output
