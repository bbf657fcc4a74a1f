"""`coe plan` with variants: measured like experts, hosted with their expert, and used as planned."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe.artifacts.kinds import ASSIGNMENT
from coe.artifacts.store import ArtifactStore
from coe.errors import ConfigError
from coe.jobs.scoring import Scoring
from coe.learning.evaluation.probes import Probe
from coe.learning.recipes.columns import RecipeColumns
from coe.learning.retraining.budget_solver import declared_problem
from coe.mapping import Problem, effective_plan, read_published
from coe.mapping.problem import relative_cost
from coe.mapping.score_table import ScoreTable
from coe.registry import Registry, load
from tests.cli.command import run

DECLARED = """\
version: 1
categories: [{name: code, description: c}, {name: law, description: l}, {name: general, description: g}]
experts:
  - {name: small, model: m, runtime: vllm, memory_gb: 3, active_parameters_b: 1}
  - name: large
    model: m
    runtime: vllm
    memory_gb: 20
    active_parameters_b: 10
    prices: {output: 10}
    variants:
      - {name: low, parameters: {reasoning_effort: low}}
      - {name: high, parameters: {reasoning_effort: high}, prices: {output: 20}}
assignment: {general: small}
budget: {memory_gb: 24}
"""
QUALITY = {
    "small": {"code": 0.2, "law": 0.5, "general": 0.9},
    "large": {"code": 0.6, "law": 0.6, "general": 0.9},
    "large:low": {"code": 0.4, "law": 0.9, "general": 0.9},
    "large:high": {"code": 0.9, "law": 0.6, "general": 0.9},
}
OUTPUT_TOKENS = {"small": 100, "large": 200, "large:low": 50, "large:high": 800}


def write_scores(folder: Path, *arms: str) -> None:
    random, prompts, scores, answers = np.random.default_rng(0), [], [], []
    for category in ("code", "law", "general"):
        for number in range(60):
            one = {"benchmark": "own", "prompt_id": f"{category}{number}"}
            prompts.append({**one, "prompt": f"{category} {number}", "category": category, "label": ""})
            for arm in arms:
                cell = {**one, "model": arm}
                scores.append({**cell, "score": float(random.random() < QUALITY[arm][category])})
                used = {"answer": "a", "input_tokens": 10, "output_tokens": OUTPUT_TOKENS[arm], "latency_ms": 10.0}
                answers.append({**cell, **used})
    for name, rows in {"prompts": prompts, "scores": scores, "answers": answers}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "experts.yaml").write_text(DECLARED)
    write_scores(tmp_path, *QUALITY)
    return tmp_path / "experts.yaml"


def plan(config: Path, *words: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(run("plan", config.parent, "--config", config, "--json", *words))
    return report


def declaration(config: Path) -> Registry:
    return load(config, environ={})


def test_each_category_gets_its_variant_and_memory_counts_the_expert_once(config: Path) -> None:
    report = plan(config)
    chosen = {row["category"]: row["expert"] for row in report["assignment"]}
    assert chosen == {"code": "large:high", "law": "large:low", "general": "small"}
    assert report["used"]["memory_gb"] == 23
    cells = report["uses"]["by_category"]["code"]
    assert cells["large:high"]["dollars"] == pytest.approx(800 * 20 / 1e6)
    assert cells["large:low"]["dollars"] == pytest.approx(50 * 10 / 1e6)


def test_the_published_plan_is_used_and_a_changed_variant_is_reported(config: Path) -> None:
    plan(config)
    artifact = ArtifactStore(config.parent / ".coe" / "artifacts", ASSIGNMENT).current()
    assert artifact is not None
    published = read_published(artifact.folder, "v1")
    same = effective_plan(published, declaration(config))
    assert same.consequences == ()
    assert same.assignment.to_json() == published.assignment.to_json()
    config.write_text(DECLARED.replace("{reasoning_effort: low}", "{reasoning_effort: none}"))
    (changed,) = effective_plan(published, declaration(config)).consequences
    assert "expert 'large:low': parameters changed since the plan was made" in changed.sentence
    removed = DECLARED.replace("      - {name: low, parameters: {reasoning_effort: low}}\n", "")
    config.write_text(removed)
    sentences = [one.sentence for one in effective_plan(published, declaration(config)).consequences]
    assert any("expert 'large:low' is no longer declared: law goes to 'large'" in one for one in sentences), sentences


def test_max_share_counts_the_calls_of_an_expert_and_its_variants_together(config: Path) -> None:
    config.write_text(DECLARED.replace("budget: {memory_gb: 24}", "budget: {max_share: 0.5}"))
    with pytest.raises(ConfigError, match=r"smallest feasible limit is 0\.6667"):  # apart, 0.34 would be feasible
        plan(config)


def test_a_recipe_of_variants_needs_their_expert_once(config: Path) -> None:
    config.write_text(DECLARED + "recipes: [{name: both, cascade: ['large:low', 'large:high']}]\n")
    report = plan(config)
    assert report["left_out"]["recipes"] == {}
    assert "both" in report["prices"]
    assert report["used"]["memory_gb"] <= 23
    artifact = ArtifactStore(config.parent / ".coe" / "artifacts", ASSIGNMENT).current()
    assert artifact is not None
    published = read_published(artifact.folder, "v1")
    assert published.record is not None
    problem = published.record.problem
    assert problem.members["both"] == ("large",)
    assert problem.uses.calls["both"].shape == (3, 1)
    assert (problem.uses.calls["both"] >= 1).all()  # of both variants together
    assert effective_plan(published, declaration(config)).assignment.to_json() == published.assignment.to_json()
    columns = RecipeColumns(
        policies=published.policies.by_arm,  # type: ignore[union-attr]
        uses=problem.uses.part(range(3), range(4, 5)),
    )
    again = declared_problem(  # as `coe retrain` solves
        declaration(config),
        table_of(problem),
        quality=problem.quality,
        weights=problem.weights,
        recipes=columns,
    )
    assert again.members == problem.members
    np.testing.assert_array_equal(again.uses.calls["both"], problem.uses.calls["both"])


def table_of(problem: Problem) -> ScoreTable:
    """A table over the problem's names, with one score in each cell."""
    ones = np.ones(problem.quality.shape)
    return ScoreTable(problem.categories, problem.experts, ones, ones, ones)


def test_a_variant_whose_expert_has_no_scores_is_left_out(config: Path) -> None:
    write_scores(config.parent, "small", "large:low", "large:high")
    report = plan(config, "--dry-run")
    assert set(report["left_out"]["experts"]) == {"large", "large:low", "large:high"}


def test_scores_are_kept_by_variant(config: Path) -> None:
    registry = declaration(config)
    probes = [Probe("p", ({"role": "user", "content": "p"},), "p", "code", "exact", "a", None, 0.0, digest="p")]
    keys = Scoring(registry, probes, (), registry.single_arms, None, 1, False).keys
    assert list(keys) == ["small", "large", "large:low", "large:high"]
    assert len({key for (key,) in keys.values()}) == 4


def test_the_relative_cost_of_a_variant_follows_its_prices(config: Path) -> None:
    registry = declaration(config)
    np.testing.assert_allclose(relative_cost(registry), [0, 0.5, 0.5, 1.0])
