"""A declaration with recorded answers, and its plan by `coe plan`."""

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from coe.artifacts.manifest import ASSIGNMENT
from coe.artifacts.store import ArtifactStore
from coe.cli import app
from coe.measuring.quality import read_quality
from coe.planning.uses import MeasuredUses
from coe.recipes.fitting.columns import RecipeColumns, recipe_columns
from coe.registry import load
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
EXPERTS, CATEGORIES = ("a", "b", "large"), ("code", "law", "general")
LETTERS = "ABCDEFGHIJ"


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)))


def write_config(folder: Path) -> Path:
    """Write a declaration with scores and answers beside it, 100 output tokens an answer; return the declaration."""
    (folder / "experts.yaml").write_text(DECLARED + CAREFUL)
    prompts, scores, answers = [], [], []
    for row, label in enumerate(ANSWERS.labels.tolist()):
        one = {"benchmark": "own", "prompt_id": str(row)}
        prompts.append({**one, "prompt": f"question {row}", "category": ("code", "law")[label], "label": ""})
        for column, name in enumerate(ANSWERS.experts):
            scores.append({**one, "model": name, "score": ANSWERS.scores[row, column]})
            used = {"input_tokens": 0, "output_tokens": 100, "latency_ms": 100.0}
            answers.append({**one, "model": name, "answer": LETTERS[ANSWERS.classes[row, column]], **used})
    write_table(folder / "prompts.jsonl", prompts)
    write_table(folder / "scores.jsonl", scores)
    write_table(folder / "answers.jsonl", answers)
    return folder / "experts.yaml"


def columns(
    config: Path,
    recipes: str = CAREFUL,
    *,
    declared: str = DECLARED,
    probed: MeasuredUses | None = None,
    expected: MeasuredUses | None = None,
) -> RecipeColumns:
    """Return the columns of these recipes, fitted on the scores of `write_config`."""
    config.write_text(declared + recipes)
    data = read_quality(config.parent, benchmark="own")
    return recipe_columns(
        config.parent,
        data,
        load(config, environ={}),
        rows=range(len(data.prompts)),
        experts=EXPERTS,
        categories=CATEGORIES,
        probed=probed,
        expected=expected,
    )


def plan(config: Path, *words: str) -> dict[str, Any]:
    result = CliRunner().invoke(
        app, ["plan", str(config.parent), "--config", str(config), "--json", *words], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def published(config: Path) -> Path:
    artifact = ArtifactStore(config.parent / ".coe" / "artifacts", ASSIGNMENT).current()
    assert artifact is not None
    return artifact.folder
