"""`coe plan` plans on what is scored, reports what it leaves out, and marks pinned categories."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from coe.artifacts.store import ArtifactStore
from coe.cli import app
from coe.planning.plan import Plan, effective_plan
from coe.registry import load

DECLARED = """\
version: 1
categories: [{name: code, description: c}, {name: law, description: l}, {name: general, description: g}]
experts:
  - {name: small, model: m, runtime: external, base_url: 'http://h/v1', prices: {input: 1, output: 1}}
  - {name: large, model: m, runtime: external, base_url: 'http://h/v1', prices: {input: 10, output: 10}}
  - {name: newcomer, model: m, runtime: external, base_url: 'http://h/v1'}
assignment: {general: small%s}
"""
MEASURED = {
    "code": {"small": 0.0, "large": 1.0},
    "law": {"small": 1.0, "large": 0.5},
    "general": {"small": 1.0, "large": 1.0},
}


def write(folder: Path, measured: Mapping[str, Mapping[str, float]], *, pins: str = "") -> Path:
    (folder / "experts.yaml").write_text(DECLARED % pins)
    prompts, scores = [], []
    for category, by_expert in measured.items():
        for number in range(20):
            one = {"benchmark": "own", "prompt_id": f"{category}{number}"}
            prompts.append({**one, "prompt": f"{category} {number}", "category": category, "label": ""})
            scores += [{**one, "model": expert, "score": score} for expert, score in by_expert.items()]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (folder / "scores.jsonl").write_text("\n".join(map(json.dumps, scores)))
    return folder / "experts.yaml"


def plan(config: Path, *words: str) -> str:
    command = ["plan", str(config.parent), "--config", str(config), *words]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def report(config: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(plan(config, "--json"))
    return found


def test_an_unscored_expert_is_left_out_with_the_command_that_scores_it(tmp_path: Path) -> None:
    config = write(tmp_path, MEASURED)
    found = report(config)
    nothing = {"categories": {}, "undeclared": {}, "unprobed": [], "recipes": {}}
    assert found["left_out"] == {"experts": ["newcomer"]} | nothing
    assert [row["expert"] for row in found["assignment"]] == ["large", "small", "small"]
    pinned, free = found["assignment"][2], found["assignment"][0]
    assert (pinned["pinned"], pinned["margin"], free["pinned"]) == (True, None, False)
    assert free["margin"] > 0.5
    assert f"coe score PROBES --out {tmp_path} --expert newcomer" in plan(config)
    current = ArtifactStore(tmp_path / ".coe" / "artifacts", "assignment").current()
    assert current is not None
    effect = effective_plan(Plan.read(current.folder), load(config, environ={}))
    assert [one.kind for one in effect.consequences] == ["expert_added"]


def test_a_category_pinned_to_an_unscored_expert_is_left_to_its_pin(tmp_path: Path) -> None:
    config = write(tmp_path, MEASURED, pins=", law: newcomer")
    found = report(config)
    assert found["left_out"]["categories"] == {"law": "newcomer"}
    assert [row["category"] for row in found["assignment"]] == ["code", "general"]
    assert "left out: law, pinned to newcomer, which has no scores; newcomer answers it" in plan(config)


def test_prompts_of_undeclared_categories_and_categories_without_probes_are_named(tmp_path: Path) -> None:
    measured = {"code": MEASURED["code"], "general": MEASURED["general"], "poems": MEASURED["law"]}
    config = write(tmp_path, measured)
    found = report(config)
    assert found["left_out"]["undeclared"] == {"poems": 20}
    assert found["left_out"]["unprobed"] == ["law"]
    output = plan(config)
    assert "left out: 20 prompts of poems, which experts.yaml does not declare" in output
    assert "estimated: law, without probes" in output
