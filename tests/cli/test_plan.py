"""`coe plan` on measured scores."""

import json
import queue
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from coe import terminal
from coe.artifacts.store import ArtifactStore
from coe.cli import app
from coe.errors import DataError
from coe.planning.plan import Plan

DECLARED = """\
version: 1
categories: [{name: code, description: c}, {name: law, description: l}, {name: general, description: g}]
experts:
  - {name: small, model: m, runtime: external, base_url: 'http://h/v1', active_parameters_b: 1}
  - {name: large, model: m, runtime: external, base_url: 'http://h/v1', active_parameters_b: 10}
assignment: {general: small}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "experts.yaml").write_text(DECLARED)
    measured = {
        "code": {"small": 0.0, "large": 1.0},
        "law": {"small": 1.0, "large": 1.0},
        "general": {"small": 1, "large": 1},
    }
    prompts, scores = [], []
    for category, by_expert in measured.items():
        for number in range(40):
            one = {"benchmark": "own", "prompt_id": f"{category}{number}"}
            prompts.append({**one, "prompt": f"{category} {number}", "category": category, "label": ""})
            scores += [{**one, "model": expert, "score": score} for expert, score in by_expert.items()]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (tmp_path / "scores.jsonl").write_text("\n".join(map(json.dumps, scores)))
    return tmp_path / "experts.yaml"


def plan(config: Path, *words: str) -> str:
    result = CliRunner().invoke(
        app, ["plan", str(config.parent), "--config", str(config), *words], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.stdout


def chosen(config: Path, *words: str) -> dict[str, str]:
    report = json.loads(plan(config, "--json", *words))
    return {row["category"]: row["expert"] for row in report["assignment"]}


def test_the_better_expert_gets_the_category_and_a_pin_stands(config: Path) -> None:
    assert chosen(config)["code"] == "large"
    assert chosen(config)["general"] == "small"
    config.write_text(DECLARED.replace("{general: small}", "{general: small, code: small}"))
    assert chosen(config)["code"] == "small"


def test_a_budget_is_kept_and_its_price_reported(config: Path) -> None:
    config.write_text(DECLARED + "budget: {mean_active_b: 4.2}\n")
    report = json.loads(plan(config, "--json"))
    assert report["used"]["mean_active_b"] <= 4.2
    assert {row["category"]: row["expert"] for row in report["assignment"]} == {
        "code": "large",
        "law": "small",
        "general": "small",
    }
    assert report["value_of_expert"]["large"] > 0.1


def test_costs_at_assumed_tokens_are_reported_until_tokens_are_measured(config: Path) -> None:
    assert "assumed" not in plan(config)  # without prices no cost depends on tokens
    priced = DECLARED.replace("active_parameters_b: 10", "active_parameters_b: 10, prices: {input: 1, output: 2}")
    config.write_text(priced)
    assert "assumed: 500 input and 300 output tokens a request to large, whose tokens were not measured" in plan(config)
    assert json.loads(plan(config, "--json"))["against"][2] == {
        "expert": "large",
        "quality": pytest.approx(0.99, abs=0.02),
        "cost": pytest.approx(1.1),
        "latency_ms": None,
        "less_plan": {
            "difference": pytest.approx(0.0, abs=0.02),
            "standard_error": pytest.approx(0.0, abs=0.02),
            "verdict": "level",
        },
    }
    scores = [json.loads(line) for line in (config.parent / "scores.jsonl").read_text().splitlines()]
    measured = {"answer": "a", "input_tokens": 100, "output_tokens": 50, "latency_ms": 900}
    (config.parent / "answers.jsonl").write_text("\n".join(json.dumps(score | measured) for score in scores))
    report = json.loads(plan(config, "--json"))
    assert report["assumed_tokens"] == []
    assert report["against"][2]["cost"] == pytest.approx(0.2)
    assert [row["latency_ms"] for row in report["against"]] == [pytest.approx(900)] * 3
    assert report["used"]["mean_latency_ms"] == pytest.approx(900)
    assert "assumed" not in plan(config)
    (config.parent / "answers.jsonl").write_text(json.dumps(scores[0] | measured | {"output_tokens": -1}))
    with pytest.raises(DataError, match=r"1 values of output_tokens are below 0, -1 of small on prompt code0"):
        plan(config)


def test_the_plan_is_put_into_use_unless_it_is_a_dry_run_and_solved_again_under_another_budget(config: Path) -> None:
    store = ArtifactStore(config.parent / ".coe" / "artifacts", "assignment")
    assert "unchanged" in plan(config, "--dry-run")
    assert store.current() is None
    assert "in use" in plan(config)
    current = store.current()
    assert current is not None
    kept = Plan.read(current.folder)
    assert kept.assignment.choice[0] == "large"
    assert kept.source == f"120 prompts of {config.parent.name}"
    assert kept.table.count.tolist() == [[40, 40], [40, 40], [40, 40]]
    assert np.isneginf(kept.problem.quality[2, 1])  # pinned to the small one
    solved = CliRunner().invoke(app, ["solve", "--config", str(config)], input='{"mean_active_b": 1.5}\n{}\n')
    frugal, free = (json.loads(line)["plan"] for line in solved.stdout.splitlines())
    assert [row["expert"] for row in frugal["assignment"]] == ["small"] * 3
    assert free["assignment"][0]["expert"] == "large"
    assert store.history()[-1].version == current.manifest.version


def test_slow_work_is_reported_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = queue.SimpleQueue[str]()
    monkeypatch.setattr(terminal, "print_error", notes.put)
    with terminal.note_if_slow("quick work"):
        pass
    monkeypatch.setattr(terminal, "NOTE_AFTER_SECONDS", 0.0)
    with terminal.note_if_slow("solving"):
        assert notes.get(timeout=240) == "note: solving takes a while"
