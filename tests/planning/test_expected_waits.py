"""Expected waits in a plan: experts that share a device cost time, which the latency limit counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe.errors import ConfigError
from coe.fleet.residency.load_times import LOAD_TIMES_FILE, LoadTimes
from coe.jobs import expected_waits
from coe.jobs.expected_waits import WaitingPlan, WaitModel, solve_with_waits, wait_model, waits_report
from coe.jobs.plan_basis import _without_waits
from coe.learning.estimation.logged_uses import LoggedUses
from coe.mapping import Assignment, Budget, PlanInputs, Problem, Uses, planned_use, solve
from coe.mapping.score_table import ScoreTable
from coe.registry import Registry
from coe.settings import Settings
from tests.fakes import registry_of
from tests.learning.samples import record
from tests.planning.test_logged_uses import config, plan

__all__ = ["config"]

CATEGORIES, EXPERTS = ("code", "art", "general"), ("coder", "painter", "generalist")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expected_waits, "SIMULATED_REQUESTS", 200)


def registry(*, memory_gb: float, **changes: Any) -> Registry:
    """Three experts of 10 GB share a device."""
    experts = [{"name": name, "model": f"own/{name}", "runtime": "vllm", "memory_gb": 10} for name in EXPERTS]
    residency = {"devices": [{"name": "gpu0", "memory_gb": memory_gb}], "max_wait": 20, "wait_timeout": 120}
    return registry_of(experts=experts, residency=residency, **changes)


def basis(limit_ms: float | None) -> PlanInputs:
    """Each expert is best at a category of its own, and the generalist nearly as good everywhere."""
    quality = np.array([[0.9, 0.2, 0.8], [0.2, 0.9, 0.8], [0.5, 0.5, 0.9]])
    uses = Uses(latency_ms=np.full((3, 3), 1000.0))
    weights = np.full(3, 1 / 3)
    problem = Problem(CATEGORIES, EXPERTS, quality, weights, uses, Budget(mean_latency_ms=limit_ms))
    table = ScoreTable(CATEGORIES, EXPERTS, quality, np.zeros((3, 3)), np.ones((3, 3)))
    return PlanInputs(problem, table, None, 0.0, "test")


def model(tmp_path: Path, *, memory_gb: float, rate: float = 0.2) -> WaitModel:
    declared = registry(memory_gb=memory_gb)
    load_times = LoadTimes(tmp_path / LOAD_TIMES_FILE, declared.experts)
    for name in EXPERTS:
        load_times.record([name], "stopped", 8.0)
    return WaitModel(declared, load_times=load_times, rate=rate)


def planned(tmp_path: Path, limit_ms: float | None, *, memory_gb: float) -> WaitingPlan:
    def solved(inputs: PlanInputs) -> Assignment:
        return solve(inputs.problem)

    return solve_with_waits(basis(limit_ms), model(tmp_path, memory_gb=memory_gb), solve=solved)


def test_where_all_fit_no_request_waits_and_the_plan_is_the_best(tmp_path: Path) -> None:
    found = planned(tmp_path, 1500, memory_gb=30)
    assert found.assignment.choice == EXPERTS
    assert {wait.mean_s for wait in found.waits.values()} == {0.0}


def test_the_latency_limit_counts_waits_and_the_plan_keeps_it_under_its_own(tmp_path: Path) -> None:
    free = planned(tmp_path, None, memory_gb=10)
    assert free.assignment.choice == EXPERTS
    assert all(wait.mean_s > 1 for wait in free.waits.values())
    limited = planned(tmp_path, 1500, memory_gb=10)
    assert set(limited.assignment.choice) == {"generalist"}
    assert limited.simulated > 1
    assert planned_use(limited.basis.problem, limited.assignment)["mean_latency_ms"] <= 1500
    again = model(tmp_path, memory_gb=10).waits(limited.basis.problem, limited.assignment)
    assert again == limited.waits


def test_a_limit_that_cannot_be_kept_even_without_waits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mean_latency_ms"):
        planned(tmp_path, 900, memory_gb=10)


def test_a_limit_that_every_plan_breaks_by_its_waits_is_refused(tmp_path: Path) -> None:
    """Each category has one expert that may serve it, so all plans use three."""
    inputs = basis(1500)
    quality = np.where(np.eye(3, dtype=bool), inputs.problem.quality, -np.inf)
    inputs = replace(inputs, problem=replace(inputs.problem, quality=quality))
    with pytest.raises(ConfigError, match=r"none of 1 plans once the waits .* are counted; the least is \d+"):
        solve_with_waits(inputs, model(tmp_path, memory_gb=10), solve=lambda one: solve(one.problem))


def test_the_search_ends_where_no_step_has_a_plan_to_simulate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each set of excluded experts leads to the same plan: eight steps without a bound."""
    monkeypatch.setattr(expected_waits, "MAX_STEPS", 2)
    known, solved = solve(basis(None).problem), list[PlanInputs]()

    def same(inputs: PlanInputs) -> Assignment:
        solved.append(inputs)
        return known

    with pytest.raises(ConfigError, match="none of 1 plans"):
        solve_with_waits(basis(1500), model(tmp_path, memory_gb=10), solve=same)
    assert len(solved) <= 1 + 2 * (1 + len(EXPERTS))


def test_the_report_has_waits_by_expert_and_category(tmp_path: Path) -> None:
    found = planned(tmp_path, None, memory_gb=20)
    report = waits_report(found, "", model(tmp_path, memory_gb=20))
    assert report is not None
    assert set(report["experts"]) == set(EXPERTS)
    assert report["by_category"] == {
        category: pytest.approx(found.waits[name].mean_s, abs=1e-4)
        for category, name in zip(CATEGORIES, EXPERTS, strict=True)
    }
    assert 0 < report["experts"]["coder"]["awake"] < 1


def test_experts_that_may_use_any_of_two_devices_wait_less_than_on_one(tmp_path: Path) -> None:
    two = [{"name": f"gpu{number}", "memory_gb": 10, "gpus": [number]} for number in range(2)]
    waits = []
    for device in ("gpu0", "any"):
        experts = [
            {"name": name, "model": f"own/{name}", "runtime": "vllm", "memory_gb": 10, "device": device}
            for name in EXPERTS
        ]
        declared = registry_of(experts=experts, residency={"devices": two, "max_wait": 20, "wait_timeout": 120})
        found = WaitModel(declared, load_times=LoadTimes(tmp_path / LOAD_TIMES_FILE, declared.experts), rate=0.2)
        plan = solve_with_waits(basis(None), found, solve=lambda inputs: solve(inputs.problem))
        waits.append(sum(wait.mean_s for wait in plan.waits.values()))
    assert waits[1] < 0.7 * waits[0]


def test_without_enough_logged_requests_the_waits_are_unknown(tmp_path: Path) -> None:
    settings = Settings.read({"COE_HOME": str(tmp_path)}, config=tmp_path / "experts.yaml")
    logged = LoggedUses(CATEGORIES)
    logged.add(record("r"))
    found, reason = wait_model(settings, registry(memory_gb=10), logged)
    assert found is None
    assert reason == "waits are not known: 1 of the 100 logged requests that show the rate"
    assert waits_report(None, reason, None) == {"unknown": reason}
    assert wait_model(settings, registry_of(), logged) == (None, "")


def test_the_rate_is_that_of_the_hour_of_a_typical_request() -> None:
    logged = LoggedUses(CATEGORIES)
    for number in range(300):  # 100 in one hour, 200 in another, none in the hours between
        logged.add(record(f"r{number}", time=3600.0 * (9 if number < 100 else 20) + number))
    assert logged.typical_rate == pytest.approx((100 * 100 + 200 * 200) / 300 / 3600)


def test_logged_times_of_shared_experts_are_left_out_since_they_contain_waits() -> None:
    table = ScoreTable(CATEGORIES, ("coder",), np.full((3, 1), 9.0), np.zeros((3, 1)), np.ones((3, 1)))
    tables = dict.fromkeys(("latency_ms", "input_tokens"), table)
    kept = _without_waits(tables, registry(memory_gb=10))
    assert (kept["latency_ms"].count.sum(), kept["input_tokens"].count.sum()) == (0, 3)
    assert _without_waits(tables, registry_of())["latency_ms"].count.sum() == 3


def test_coe_plan_shows_the_waits_and_counts_them_in_its_latency(config: Path) -> None:
    text = config.read_text()
    for name in ("small", "large"):
        text = text.replace(
            f"{{name: {name}, model: m, runtime: external, base_url: 'http://h/v1'",
            f"{{name: {name}, model: own/{name}, runtime: vllm, memory_gb: 10",
        )
    shared = "residency: {devices: [{name: gpu0, memory_gb: 10}]}\n"
    config.write_text(f"{text}{shared}")
    report = plan(config, "--json")
    waits = report["waits"]
    assert set(waits["experts"]) == {"small", "large"}
    assert waits["requests_per_s"] == pytest.approx(1200 / 3600)
    large = report["uses"]["by_category"]["code"]["large"]["latency_ms"]
    assert large == pytest.approx(900 + 1000 * waits["experts"]["large"]["mean_s"], rel=1e-3)
    assert "expected waits on shared devices at 0.333 requests a second" in plan(config)
    config.write_text(f"{text}{shared}budget: {{mean_latency_ms: 1000}}\n")
    assert {row["expert"] for row in plan(config, "--json")["assignment"]} == {"small"}  # `general` is pinned to it
