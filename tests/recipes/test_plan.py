"""`coe plan` with recipes: arms are planned from recorded answers, published, and used as fitted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from coe.artifacts.kinds import ASSIGNMENT
from coe.artifacts.store import ArtifactStore
from coe.cli import app
from coe.experts import build_recipes
from coe.experts.recipes.policy_file import RECIPES_FILE, ArmPolicies
from coe.mapping import effective_plan, read_published
from coe.registry import Registry, load
from tests.fakes import ScriptedExpert
from tests.recipes.recorded import recorded_answers

DECLARED = """\
version: 1
categories: [{name: code, description: c}, {name: law, description: l}, {name: general, description: g}]
experts:
  - {name: a, model: m, runtime: external, base_url: 'http://h/v1', active_parameters_b: 1, prices: {output: 10}}
  - {name: b, model: m, runtime: external, base_url: 'http://h/v1', active_parameters_b: 1, prices: {output: 10}}
  - {name: large, model: m, runtime: external, base_url: 'http://h/v1', active_parameters_b: 12, prices: {output: 120}}
assignment: {general: large}
budget: {mean_cost: 10}
"""
CAREFUL = "recipes: [{name: careful, cascade: [[a, b], large]}]\n"
ANSWERS = recorded_answers(
    {"a": (0.6, 0.5), "b": (0.6, 0.5), "large": (0.8, 0.75)}, {"a": 1.0, "b": 1.0, "large": 12.0}, prompts=1200
)
LETTERS = "ABCDEFGHIJ"


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A declaration, and the folder of scores and answers beside it; 100 output tokens an answer."""
    (tmp_path / "experts.yaml").write_text(DECLARED + CAREFUL)
    prompts, scores, answers = [], [], []
    for row, label in enumerate(ANSWERS.labels.tolist()):
        one = {"benchmark": "own", "prompt_id": str(row)}
        prompts.append({**one, "prompt": f"question {row}", "category": ("code", "law")[label], "label": ""})
        for column, name in enumerate(ANSWERS.experts):
            scores.append({**one, "model": name, "score": ANSWERS.scores[row, column]})
            used = {"input_tokens": 0, "output_tokens": 100, "latency_ms": 100.0}
            answers.append({**one, "model": name, "answer": LETTERS[ANSWERS.classes[row, column]], **used})
    write_table(tmp_path / "prompts.jsonl", prompts)
    write_table(tmp_path / "scores.jsonl", scores)
    write_table(tmp_path / "answers.jsonl", answers)
    return tmp_path / "experts.yaml"


def plan(config: Path, *words: str) -> dict[str, Any]:
    result = CliRunner().invoke(
        app, ["plan", str(config.parent), "--config", str(config), "--json", *words], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def declaration(config: Path) -> Registry:
    return load(config, environ={})


def published(config: Path) -> Path:
    artifact = ArtifactStore(config.parent / ".coe" / "artifacts", ASSIGNMENT).current()
    assert artifact is not None
    return artifact.folder


def test_an_arm_is_planned_where_it_beats_every_expert_within_the_budget(config: Path) -> None:
    report = plan(config)
    chosen = {row["category"]: row["expert"] for row in report["assignment"]}
    assert chosen["code"].startswith("careful@")
    assert report["recipes"] == {"careful": [["a", "b"], ["large"]]}
    assert report["used"]["mean_cost"] <= 10
    config.write_text(DECLARED)
    assert plan(config)["quality"] < report["quality"] - 0.02


def test_the_planned_cost_of_an_arm_is_what_its_calls_cost(config: Path) -> None:
    report = plan(config)
    folder = published(config)
    problem = read_published(folder, "v").record.problem  # type: ignore[union-attr]
    policies = ArmPolicies.from_json((folder / RECIPES_FILE).read_bytes()).by_arm
    column = problem.experts.index("careful@2")
    calls = problem.uses.calls["careful@2"]
    assert problem.uses.cost is not None
    assert problem.uses.cost[:, column] == pytest.approx(calls @ np.array([1.0, 1.0, 12.0]), rel=0.02)
    assert set(policies) == {"careful@1", "careful@2", "careful@3"} <= set(report["prices"])


def test_an_unchanged_declaration_keeps_the_arms_and_changed_steps_drop_them(config: Path) -> None:
    plan(config)
    found = read_published(published(config), "v1")
    effective = effective_plan(found, declaration(config))
    assert effective.assignment.experts == ("a", "b", "large", "careful@1", "careful@2", "careful@3")
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
    found = read_published(published(config), "v1")
    extended = found.declaration(declaration(config))
    assert "auto-1@1" in effective_plan(found, extended).assignment.experts
    assert extended.digest == declaration(config).digest
    assert extended.arm("auto-1@1").context_length == 8192
    config.write_text(DECLARED)
    assert found.declaration(declaration(config)) == declaration(config)


def test_a_bound_that_the_probes_cannot_show_leaves_the_recipe_out_with_the_remedy(config: Path) -> None:
    config.write_text(DECLARED + CAREFUL.replace("[[a, b], large]", "[a, large], max_loss: 0.001"))
    report = plan(config)
    assert "max_loss 0.001" in report["left_out"]["recipes"]["careful"]
    assert report["recipes"] == {}
    assert all("@" not in row["expert"] for row in report["assignment"])


def test_a_bound_that_the_probes_show_keeps_the_safest_arms(config: Path) -> None:
    config.write_text(DECLARED + CAREFUL.replace("[[a, b], large]", "[a, large], max_loss: 0.1"))
    arms = [name for name in plan(config)["prices"] if "@" in name]
    assert "careful@3" in arms
    assert "careful@1" not in arms
    policies = ArmPolicies.from_json((published(config) / RECIPES_FILE).read_bytes()).over(("law", "code"))
    assert policies.version
    for arm in arms:
        loss = policies.by_arm[arm].loss_per_difference
        assert loss is not None
        assert 0.1 <= loss <= 1.0  # large is right in about half of the cases in which it differs


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
    found = read_published(published(config), "v1").declaration(declaration(config))
    assert {recipe.name for recipe in found.declared_recipes} == set(report["recipes"]) - {"careful"}


def test_solving_for_another_budget_keeps_proposed_recipes(config: Path) -> None:
    config.write_text(DECLARED + "recipes: auto\n")
    plan(config)
    result = CliRunner().invoke(app, ["solve", "--config", str(config)], input='{"mean_cost": 10}\n')
    assert result.exit_code == 0, result.output
    assert "auto-1@1" in json.loads(result.stdout)["plan"]["prices"]


def test_arms_have_the_latency_that_is_declared_where_none_was_measured(config: Path) -> None:
    rows = [json.loads(line) for line in (config.parent / "answers.jsonl").read_text().splitlines()]
    write_table(config.parent / "answers.jsonl", [row | {"latency_ms": None} for row in rows])
    declared = DECLARED.replace("active_parameters_b: 1,", "active_parameters_b: 1, latency_ms: 100,")
    declared = declared.replace("active_parameters_b: 12,", "active_parameters_b: 12, latency_ms: 900,")
    config.write_text(declared.replace("mean_cost: 10", "mean_latency_ms: 800") + CAREFUL)
    assert plan(config)["used"]["mean_latency_ms"] <= 800
    problem = read_published(published(config), "v1").record.problem  # type: ignore[union-attr]
    assert problem.uses.latency_ms is not None
    assert problem.uses.latency_ms[0, 3] == pytest.approx(100.0)  # both small members at the same time


def test_arms_are_priced_by_assumed_tokens_like_experts_where_none_were_counted(config: Path) -> None:
    rows = [json.loads(line) for line in (config.parent / "answers.jsonl").read_text().splitlines()]
    write_table(config.parent / "answers.jsonl", [row | {"input_tokens": None} for row in rows])
    config.write_text(DECLARED.replace("mean_cost: 10", "mean_cost: 30") + CAREFUL)
    plan(config)
    problem = read_published(published(config), "v1").record.problem  # type: ignore[union-attr]
    assert problem.uses.cost is not None
    assert problem.uses.cost[0, 3] == pytest.approx(problem.uses.cost[0, 0] + problem.uses.cost[0, 1], rel=0.05)


def test_a_pinned_recipe_uses_the_next_safer_policy_where_max_loss_rules_its_own_out(config: Path) -> None:
    config.write_text(DECLARED + CAREFUL.replace("[[a, b], large]", "[a, large], max_loss: 0.1"))
    plan(config)
    registry = declaration(config)
    policies = ArmPolicies.from_json((published(config) / RECIPES_FILE).read_bytes()).by_arm
    experts = {name: ScriptedExpert(name) for name in registry.expert_names}
    arms = build_recipes(registry, experts, categories=3, policies=policies)
    assert "careful@1" not in policies
    assert arms["careful@1"].policy is policies[min(policies)]
