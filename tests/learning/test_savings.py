"""The plan in use against always calling one expert, on the requests of the log."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from coe.artifacts.kinds import ASSIGNMENT
from coe.artifacts.store import ArtifactStore
from coe.cli.status import _savings_lines
from coe.experts.recipes.policy import default_policy
from coe.experts.recipes.policy_file import ArmPolicies
from coe.jobs.status_report import status_report
from coe.learning.estimation.logged_uses import LoggedUses
from coe.learning.monitoring.savings import PlanQuality, billed, savings
from coe.learning.recipes.columns import RecipeColumns
from coe.learning.retraining.budget_solver import declared_problem
from coe.mapping import (
    LOGGED_MEASURES,
    Dependencies,
    MeasuredUses,
    PlanInputs,
    PlanRecord,
    Problem,
    PublishedPlan,
    Uses,
    read_plan_file,
    read_published,
    solve,
)
from coe.mapping.score_table import ScoreTable, tabulate_softly
from coe.records.record import RecipeCall, RoutingRecord
from coe.registry import Registry
from coe.settings import Settings
from tests.admin.samples import CATEGORIES, measured_registry, planned, settings_in
from tests.gateway import words_server
from tests.learning.samples import record
from tests.learning.test_status_report import URL
from tests.learning.test_status_report import logged as write_log

INPUT, OUTPUT = 1000, {"coder": 500, "painter": 2000, "generalist": 100}


def records(per_category: int = 400, **fields: Any) -> list[RoutingRecord]:
    """Requests that go to each expert in turn, with its own number of output tokens; a dollar is billed for each."""
    found = []
    for number in range(3 * per_category):
        expert = tuple(OUTPUT)[number // 3 % 3]
        usual = {"expert": expert, "input_tokens": INPUT, "output_tokens": OUTPUT[expert], "cost": 1.0}
        found.append(
            record(f"s{number}", category=CATEGORIES[number % 3], **usual | {"time": time.time() - 60} | fields)
        )
    return found


@pytest.fixture
def registry() -> Registry:
    return measured_registry()


@pytest.fixture
def plan(tmp_path: Path, registry: Registry) -> tuple[PublishedPlan, PlanQuality]:
    settings = settings_in(tmp_path, registry)
    version, _ = planned(settings, registry)
    folder = ArtifactStore(settings.artifacts, ASSIGNMENT).published(version).folder
    file = read_plan_file(folder)
    assert file is not None
    return read_published(folder, version), PlanQuality.from_json(file)


def compared(plan: tuple[PublishedPlan, PlanQuality], registry: Registry, found: list[RoutingRecord]) -> dict[str, Any]:
    logged = LoggedUses.of([found], CATEGORIES)
    return savings(logged, *plan, registry=registry, effective=plan[0].assignment)


def test_the_plan_and_each_expert_are_compared_on_the_logged_requests(
    plan: tuple[PublishedPlan, PlanQuality], registry: Registry
) -> None:
    report = compared(plan, registry, records())
    assert (report["requests"], report["unplanned"], report["unmeasured"]) == (1200, 0, [])
    assignment, quality = plan[0].assignment, plan[1].estimate
    assert len(set(assignment.choice)) > 1
    dollars = [registry.expert(name).prices.cost(INPUT, OUTPUT[name]) for name in assignment.choice]
    chosen = [quality[row, assignment.experts.index(name)] for row, name in enumerate(assignment.choice)]
    assert report["plan"]["quality"] == pytest.approx(np.mean(chosen))
    assert report["plan"]["dollars"] == pytest.approx(400 * sum(dollars), rel=0.01)
    for row in report["always"]:
        name = row["expert"]
        spent = 1200 * registry.expert(name).prices.cost(INPUT, OUTPUT[name])
        assert row["dollars"] == pytest.approx(spent, rel=0.01)
        assert row["saved"] == pytest.approx(row["dollars"] - report["plan"]["dollars"])
        assert row["quality"] == pytest.approx(quality[:, assignment.experts.index(name)].mean())
        assert row["difference"] == pytest.approx(report["plan"]["quality"] - row["quality"])
        assert row["error"] > 0


def test_errors_are_paired_and_an_equal_choice_has_none(
    plan: tuple[PublishedPlan, PlanQuality], registry: Registry
) -> None:
    published, quality = plan
    paired = np.full(quality.error.shape, 0.01)
    only = [one for one in records() if one.category == "code"]
    apart = compared(plan, registry, only)["always"]
    together = compared((published, PlanQuality(quality.estimate, quality.error, paired)), registry, only)["always"]
    own = published.assignment.experts.index(dict(zip(CATEGORIES, published.assignment.choice, strict=True))["code"])
    for column, (one, other) in enumerate(zip(together, apart, strict=True)):
        assert one["error"] == (0.0 if column == own else pytest.approx(0.01))
        assert other["error"] == 0.0 if column == own else other["error"] > 0.01


def test_an_expert_that_the_plan_did_not_measure_is_named(plan: tuple[PublishedPlan, PlanQuality]) -> None:
    experts = [spec.model_dump(mode="json", exclude_none=True) for spec in measured_registry().experts]
    more = measured_registry(experts=[*experts, {**experts[0], "name": "new"}])
    report = compared(plan, more, records())
    assert report["unmeasured"] == ["new"]
    assert [row["expert"] for row in report["always"]] == ["coder", "painter", "generalist"]


def test_the_bill_is_what_was_recorded_whatever_prices_are_now() -> None:
    found = records(10)
    unpriced = records(1, cost=None)
    report = billed(LoggedUses.of([[*found, *unpriced]], CATEGORIES))
    assert report == {"requests": 33, "with_cost": 30, "dollars": pytest.approx(30.0)}
    assert billed(LoggedUses(CATEGORIES)) == {"requests": 0, "with_cost": 0, "dollars": 0.0}


def test_a_plan_stores_the_paired_errors_of_its_prompts(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    easy = random.random(500)
    scores = np.column_stack([easy, easy + random.normal(0.1, 0.02, 500), random.random(500)])
    scores[:50, 2] = np.nan
    table = tabulate_softly(("general",), ("a", "b", "c"), np.ones((500, 1)), scores)
    problem = Problem.of(table, quality=table.mean)
    plan = solve(problem)
    assert plan.choice == ("b",)
    inputs = PlanInputs(problem, table, None, 0.0, "test", prompt_scores=(np.zeros(500, dtype=np.int64), scores))
    inputs.save(tmp_path, plan, values={})
    file = read_plan_file(tmp_path)
    assert file is not None
    found = PlanQuality.from_json(file).paired_error[0]
    assert found[1] == 0
    assert found[0] == pytest.approx(0.02 / np.sqrt(500), rel=0.2)  # far below that of unpaired scores
    assert found[2] == pytest.approx(np.nanstd(scores[:, 2] - scores[:, 1], ddof=1) / np.sqrt(450), rel=0.01)


def test_paired_errors_of_few_or_equal_scores_are_not_zero(tmp_path: Path) -> None:
    """b is equal to a on 20 prompts of one category and differs in the other, c is equal in both, and d is new."""
    names, experts = ("code", "general"), ("a", "b", "c", "d")
    labels = np.repeat([0, 1], (20, 40))
    scores = np.ones((60, 4))
    scores[20:, 1] = np.tile([0.0, 1.0], 20)
    scores[:, 3] = np.nan
    scores[18:22, 3] = 0.0
    table = tabulate_softly(names, experts, np.eye(2)[labels], scores)
    plan = replace(solve(Problem.of(table, quality=table.mean)), choice=("a", "a"))
    inputs = PlanInputs(Problem.of(table, quality=table.mean), table, None, 0.0, "test", prompt_scores=(labels, scores))
    inputs.save(tmp_path, plan, values={})
    found = PlanQuality.from_json(read_plan_file(tmp_path) or {}).paired_error
    assert found[:, 0].tolist() == [0, 0]
    assert 0.01 < found[0, 1] < found[1, 1] == pytest.approx(0.5 / np.sqrt(40), rel=0.05)
    assert np.isnan(found[:, 2:]).all()  # the unpaired error holds


def test_the_dollars_of_an_arm_follow_the_log_like_those_of_its_members() -> None:
    """Probes had 100 tokens, requests have 1000: each request is a vote of a, for $0.008, and b, for $0.08."""
    registry = measured_registry(
        experts=[
            {"name": name, "model": "m", "runtime": "external", "base_url": "http://h/v1", "prices": {"output": price}}
            for name, price in (("a", 8), ("b", 80))
        ],
        assignment={"general": "b"},
        recipes=[{"name": "panel", "vote": ["a", "b"]}],
    )
    names, shape = ("a", "b", "panel"), (len(CATEGORIES), 2)
    table = ScoreTable(CATEGORIES, names, *(np.full((3, 3), value) for value in (0.5, 0.1, 100.0)))
    probes = {"input_tokens": 0.0, "output_tokens": 100.0}
    uses = MeasuredUses(
        CATEGORIES, names[:2], **{name: np.full(shape, probes.get(name, np.nan)) for name in LOGGED_MEASURES}
    )
    column = np.ones((3, 1))
    policy = default_policy(registry.declared_recipes[0], categories=3)
    arms = RecipeColumns(
        policies={"panel": policy},
        uses=Uses(cost=column * 8.8, active_b=column, latency_ms=column, calls={"panel": np.ones(shape)}),
    )
    problem = declared_problem(
        registry, table, quality=table.mean, weights=np.ones(3), measured_uses=uses, recipes=arms
    )
    assignment = replace(solve(problem), choice=("panel",) * 3)
    dependencies = Dependencies.of(registry)
    plan = PublishedPlan(
        "1",
        assignment,
        PlanRecord(problem, table.mean, dependencies, uses.over(CATEGORIES, names)),
        ArmPolicies(CATEGORIES, {"panel": policy}),
    )
    calls = tuple(RecipeCall(name, 0, "answered", 0, 1000, 9.0) for name in ("a", "b"))
    found = [
        record(f"v{number}", category=CATEGORIES[number % 3], expert="panel", steps=calls, cost=0.088)
        for number in range(1000)
    ]
    quality = PlanQuality(table.mean, table.mean, np.full((3, 3), np.nan))
    logged = LoggedUses.of([found], CATEGORIES)
    report = savings(logged, plan, quality, registry=registry, effective=assignment)
    assert report["plan"]["dollars"] == pytest.approx(88, rel=0.01)
    assert {row["expert"]: row["saved"] for row in report["always"]} == {
        "a": pytest.approx(-80, rel=0.01),
        "b": pytest.approx(-8, rel=0.01),
    }


# ------------------------------------------------------------------------------------------------- coe status


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: Registry) -> Settings:
    monkeypatch.setattr("coe.runtime.active_state.load_active_state", words_server.read)
    declared = measured_registry(log={"url": URL}).model_dump(mode="json", exclude_none=True)
    (tmp_path / "experts.yaml").write_bytes(orjson.dumps(declared))
    return Settings.read({}, config=tmp_path / "experts.yaml")


def test_status_has_the_bill_and_the_savings_and_says_what_it_does_not_know(
    settings: Settings, registry: Registry
) -> None:
    write_log(settings, [*records(100), record("failed", outcome="expert_timeout", time=time.time() - 60)])
    before = status_report(settings, now=time.time())["savings"]
    assert before["compared"] is None
    assert before["billed"]["dollars"] == pytest.approx(300.0)
    assert before["left_out"] == {"failed or aborted": 1}
    assert ("savings", "unknown: no plan made from scores is in use; run coe score and coe plan") in _savings_lines(
        before
    )
    planned(settings, registry)
    found = status_report(settings, now=time.time())["savings"]
    assert found["compared"]["requests"] == 300
    lines = dict(_savings_lines(found))
    assert lines["billed"] == "$300 for 300 of 300 requests in 7 days"
    assert {"this plan", "always coder", "always painter", "always generalist"} <= lines.keys()
    assert "other requests may use more or less" in found["unknown"][0]
    assert "±" in lines["always painter"]
    assert "the plan saves $" in lines["always painter"]


def test_status_without_requests_shows_no_bill(settings: Settings) -> None:
    assert _savings_lines(status_report(settings, now=time.time())["savings"]) == []
