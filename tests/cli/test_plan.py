"""`coe plan` on measured scores."""

import json
import queue
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from coe import foreground
from coe.artifacts.store import ArtifactStore
from coe.cli import app
from coe.errors import ArtifactError, DataError
from coe.planning import Plan

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


def test_where_categories_do_not_distinguish_experts_the_best_one_gets_them_all(config: Path) -> None:
    rng, names = np.random.default_rng(0), [f"topic{number}" for number in range(20)]
    skill = {"small": 0.5, "large": 0.6}
    declared = ", ".join(f"{{name: {name}, description: d}}" for name in names)
    config.write_text(DECLARED.replace("categories: [", f"categories: [{declared}, "))
    prompts, scores = [], []
    for number in range(200):
        one = {"benchmark": "own", "prompt_id": str(number)}
        prompts.append({**one, "prompt": f"question {number}", "category": names[number % 20], "label": ""})
        scores += [{**one, "model": name, "score": int(rng.random() < chance)} for name, chance in skill.items()]
    (config.parent / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (config.parent / "scores.jsonl").write_text("\n".join(map(json.dumps, scores)))
    assert {chosen(config)[name] for name in names} == {"large"}


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
        "estimate": pytest.approx(1.0, abs=0.02),
        "cost": pytest.approx(1.1),
        "latency_ms": None,
        "less_plan": {"difference": pytest.approx(0.0, abs=0.02), "standard_error": None, "verdict": "level"},
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
    with pytest.raises(DataError, match=r"1 output_tokens are below 0, -1 of small on prompt code0"):
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


def test_solve_before_the_first_plan_is_an_error(config: Path) -> None:
    with pytest.raises(ArtifactError, match="run `coe plan`"):
        CliRunner().invoke(app, ["solve", "--config", str(config)], input="{}", catch_exceptions=False)


def test_a_sample_that_breaks_a_limit_at_the_plan_s_prices_is_reported(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text(DECLARED + "budget: {max_share: 0.7}\n")

    def planned(*requests: int) -> Result:
        monkeypatch.setattr("coe.planning.job.basis._traffic", lambda *_: np.repeat(np.eye(3), requests, axis=0))
        return CliRunner().invoke(app, ["plan", str(config.parent), "--config", str(config), "--json"])

    crowded = planned(80, 10, 10)
    used = json.loads(crowded.stdout)["sample"]["max_share"]
    assert used["used"] >= 0.8
    assert f"traffic comes to max_share {used['used']:g}, above the limit of {used['limit']:g}" in crowded.stderr
    even = planned(40, 30, 30)
    assert json.loads(even.stdout)["sample"]["max_share"]["used"] <= 0.7
    assert "sample of traffic" not in even.stderr


def test_a_sweep_shows_what_each_limit_gives_and_which_cannot_be_kept(config: Path) -> None:
    report = json.loads(plan(config, "--json", "--sweep", "mean_active_b=1,4.2,10,0.2,0.1"))
    assert [row["limit"] for row in report["sweep"]] == [1, 4.2, 10]
    assert report["sweep"][0]["quality"] < report["sweep"][1]["quality"]
    assert report["sweep"][0]["hosted"] == ["small", "large"]
    assert report["sweep_impossible"] == [0.1, 0.2]
    assert "       0.1 cannot be kept\n       0.2 cannot be kept\n" in plan(config, "--sweep", "mean_active_b=0.2,0.1")
    unknown = CliRunner().invoke(app, ["plan", str(config.parent), "--config", str(config), "--sweep", "speed=1"])
    assert unknown.exit_code == 2


def test_values_that_take_too_long_are_left_out(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coe.planning.solver.MARGINAL_VALUES_SECONDS", 0.0)
    assert "large              0.0000  not found in time" in plan(config)
    assert ArtifactStore(config.parent / ".coe" / "artifacts", "assignment").in_use() is not None


def test_slow_work_is_reported_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = queue.SimpleQueue[str]()
    monkeypatch.setattr(foreground, "print_error", notes.put)
    with foreground.note_if_slow("quick work"):
        pass
    monkeypatch.setattr(foreground, "NOTE_AFTER_SECONDS", 0.0)
    with foreground.note_if_slow("solving"):
        assert notes.get(timeout=240) == "note: solving takes a while"


def test_of_several_benchmarks_the_one_named_is_planned_on(config: Path) -> None:
    scores, prompts = config.with_name("scores.jsonl"), config.with_name("prompts.jsonl")
    other = [row.replace('"own"', '"other"') for row in prompts.read_text().splitlines()]
    prompts.write_text("\n".join((prompts.read_text(), *other)))
    swapped = {"small": "large", "large": "small"}
    rows = list(map(json.loads, scores.read_text().splitlines()))
    rows += [{**row, "benchmark": "other", "model": swapped[row["model"]]} for row in rows]
    scores.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match="no benchmark was named; choose one of other, own"):
        plan(config)
    assert chosen(config, "--benchmark", "own")["code"] == "large"
    assert chosen(config, "--benchmark", "other")["code"] == "small"


def test_an_expert_without_scores_is_named(config: Path) -> None:
    config.write_text(DECLARED.replace("name: large", "name: huge"))
    with pytest.raises(DataError, match="no scores of huge; run `coe score`"):
        plan(config)
