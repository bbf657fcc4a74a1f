"""Uses from the routing log: records that count, shrinkage of few records, and the bill of held-out requests."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe.artifacts.manifest import ROUTER
from coe.artifacts.store import ArtifactStore
from coe.cli.common import settings_for
from coe.learning.log_frame import frame_of
from coe.learning.logged_uses import (
    MIN_TRAFFIC_REQUESTS,
    LoggedUses,
)
from coe.planning.assignment import expected_utility
from coe.planning.job.basis import _logged_tables, plan_basis
from coe.planning.plan import round_traffic
from coe.planning.problem import Problem
from coe.planning.solver import solve
from coe.planning.uses import LOGGED_MEASURES, MeasuredUses, declared_uses
from coe.records import open_log_and_feedback
from coe.records.record import RecipeCall, RoutingRecord
from coe.registry import load
from tests.admin.samples import router_published
from tests.cli.command import run
from tests.fakes import registry_of
from tests.learning.samples import record
from tests.planning.test_plan import routed_use

CATEGORIES = ("code", "law", "general")


def answered(number: int = 0, **fields: Any) -> RoutingRecord:
    usual = {"input_tokens": 100, "output_tokens": 50, "total_ms": 500.0, "cost": 0.01}
    return record(f"r{number}", **usual | {"stream": True} | fields)


def uses_of(records: Iterable[RoutingRecord]) -> LoggedUses:
    return LoggedUses.of(frame_of([list(records)], []), CATEGORIES)


def scored(output: float = 100.0, experts: tuple[str, ...] = ("coder", "generalist")) -> MeasuredUses:
    """Uses of scores that are equal in all categories."""
    shape = len(CATEGORIES), len(experts)
    values = {"input_tokens": 100.0, "output_tokens": output, "latency_ms": 1000.0}
    return MeasuredUses(
        CATEGORIES, experts, **{name: np.full(shape, values.get(name, np.nan)) for name in LOGGED_MEASURES}
    )


def updated(records: Iterable[RoutingRecord], output: float = 100.0) -> MeasuredUses:
    before = scored(output)
    return before.updated(uses_of(records).tables(before.experts))


# ------------------------------------------------------------------------------------------------- which records count


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"outcome": "aborted"}, "failed or aborted"),
        ({"outcome": "expert_timeout"}, "failed or aborted"),
        ({"attempts": 0}, "answered without a call"),
        ({"api": "embeddings"}, "embeddings"),
        ({"category": "gone"}, "of a category that is not planned"),
    ],
)
def test_records_that_do_not_show_what_an_answer_uses_are_left_out(fields: dict[str, Any], reason: str) -> None:
    found = uses_of([answered(1), answered(2, **fields)])
    assert found.left_out == {reason: 1}
    assert found.requests == {("code", "coder"): 1}
    assert found.table("output_tokens", ["coder"]).count[0, 0] == 1


def test_times_that_include_a_failed_call_do_not_count_but_tokens_do() -> None:
    found = uses_of([answered(1), answered(2, attempts=2, total_ms=9000.0), answered(3, stream=False)])
    assert found.table("latency_ms", ["coder"]).mean[0, 0] == 500.0
    assert found.table("input_tokens", ["coder"]).count[0, 0] == 3


def test_a_recipe_counts_for_its_arm_and_for_the_members_of_its_first_step() -> None:
    calls = (
        RecipeCall("coder", 0, "answered", 10, 20, 30.0, cached_tokens=4),
        RecipeCall("painter", 0, "timeout", ms=900.0),
        RecipeCall("generalist", 1, "answered", 10, 999, 30.0, accepted=True),
    )
    found = uses_of([answered(expert="careful", input_tokens=20, output_tokens=1019, steps=calls, cost=0.5)])
    assert found.table("dollars", ["careful"]).mean[0, 0] == 0.5
    output = found.table("output_tokens", ["careful", "coder", "painter", "generalist"])
    np.testing.assert_array_equal(output.count[0], [1, 1, 0, 0])
    assert output.mean[0, 1] == 20
    assert found.table("cached_tokens", ["coder"]).mean[0, 0] == 4
    fallback = {"expert": "generalist", "fallback_from": "careful", "steps": calls, "input_tokens": 20, "cost": 0.5}
    failed = uses_of([answered(**fallback)])  # its sums contain the recipe's calls
    for measure in ("input_tokens", "output_tokens", "dollars"):
        assert failed.table(measure, ["generalist"]).count[0, 0] == 0


def test_the_mix_of_traffic_is_that_of_one_router_without_pinned_and_forced_requests_and_cached_answers() -> None:
    """Two gateways with different routers write into one log."""
    posterior, other = {"code": 0.5, "law": 0.3, "general": 0.2}, {"code": 1.0, "law": 0, "general": 0}
    old = [answered(number, router="r0", probabilities=other) for number in range(MIN_TRAFFIC_REQUESTS)]
    new = [answered(number, router="r1", probabilities=posterior) for number in range(MIN_TRAFFIC_REQUESTS)]
    others = [
        answered(number, router="r1", reason=reason, probabilities=other)
        for number, reason in enumerate(("pinned", "rule", "cached") * 6)
    ]
    mixed = [one for pair in zip(old, new, strict=True) for one in pair]
    found = uses_of([*mixed[2:], *others])
    assert found.mix(CATEGORIES, router="r1") is None  # one too few
    mix = uses_of([*mixed, *others]).mix(("law", "code"), router="r1")
    assert mix is not None
    np.testing.assert_allclose(mix[0] / mix[0].sum(), [0.375, 0.625])
    np.testing.assert_allclose(mix[1], np.tile([0.3, 0.5], (MIN_TRAFFIC_REQUESTS, 1)), rtol=1e-6)


# ------------------------------------------------------------------------------------------------- shrinkage


def test_few_records_move_little_and_many_replace_the_scores() -> None:
    before, none, few, many = (
        scored(),
        *(updated(answered(number, output_tokens=400) for number in range(count)) for count in (0, 3, 3000)),
    )
    for name in LOGGED_MEASURES:
        np.testing.assert_array_equal(getattr(none, name), getattr(before, name))
    assert 100 < few.output_tokens[0, 0] < 160
    np.testing.assert_allclose(many.output_tokens[:2, 0], 400, rtol=0.02)  # the ratio holds in other categories
    np.testing.assert_allclose(many.output_tokens[:, 1], 400, rtol=0.02)  # so that costs compare


def test_cached_tokens_lower_the_expected_cost_by_their_share() -> None:
    registry = registry_of(
        experts=[
            {"name": name, "model": "m", "runtime": "external", "base_url": "http://h/v1"}
            | {"prices": {"input": 10, "cached_input": 1, "output": 0}}
            for name in ("coder", "generalist")
        ],
        assignment={"general": "generalist"},
        categories=[{"name": name, "description": name} for name in CATEGORIES],
    )
    found = updated([answered(number, cached_tokens=80 * (number % 2)) for number in range(4000)])
    cost = declared_uses(registry, CATEGORIES, measured=found).cost
    assert cost is not None
    assert cost[0, 0] == pytest.approx((60 * 10 + 40 * 1) / 1000, rel=0.02)
    assert cost[0, 1] == pytest.approx(100 * 10 / 1000)


# ------------------------------------------------------------------------------------------------- held-out requests

PRICES = {"small": (0.5, 2.0), "large": (3.0, 15.0)}
OUTPUT = {"code": (700.0, 1500.0), "law": (60.0, 300.0), "general": (200.0, 500.0)}
TAIL = 1.0
TOTAL = 24_000


class Traffic:
    """Requests with log-normal lengths, and what each expert's answer would use."""

    def __init__(self) -> None:
        experts = [
            {"name": name, "model": "m", "runtime": "external", "base_url": "http://h/v1"}
            | {"prices": {"input": read, "output": written}}
            for name, (read, written) in PRICES.items()
        ]
        categories = [{"name": name, "description": name} for name in CATEGORIES]
        self.registry = registry_of(categories=categories, experts=experts, assignment={"general": "small"})
        random = np.random.default_rng(0)
        self.category = random.integers(len(CATEGORIES), size=TOTAL)
        means = np.array([OUTPUT[name] for name in CATEGORIES])[self.category]
        self.written = np.ceil(means * random.lognormal(-(TAIL**2) / 2, TAIL, (TOTAL, 2)))
        self.given = np.ceil(300 * random.lognormal(-(TAIL**2) / 2, TAIL, (TOTAL, 2)))
        self.latency = 50 + self.written * (5.0, 20.0)
        signal = random.normal(size=(TOTAL, len(CATEGORIES))) + 3 * np.eye(len(CATEGORIES))[self.category]
        odds = np.exp(3 * signal)
        self.posterior = odds / odds.sum(axis=1, keepdims=True)
        self.dollars = (self.given * (0.5, 3.0) + self.written * (2.0, 15.0)) / 1e6
        self.chosen = random.integers(2, size=TOTAL)

    def records(self, rows: range) -> Iterable[RoutingRecord]:
        for row in rows:
            column = self.chosen[row]
            yield answered(
                row,
                category=CATEGORIES[self.category[row]],
                expert=tuple(PRICES)[column],
                probabilities=dict(zip(CATEGORIES, self.posterior[row].tolist(), strict=True)),
                input_tokens=int(self.given[row, column]),
                output_tokens=int(self.written[row, column]),
                total_ms=float(self.latency[row, column]),
                cost=float(self.dollars[row, column]),
            )


@pytest.fixture(scope="module")
def traffic() -> Traffic:
    return Traffic()


@pytest.fixture(scope="module")
def uses(traffic: Traffic) -> tuple[MeasuredUses, LoggedUses]:
    """Uses of the first half of the log; the scores before it were of prompts with a third of the length."""
    logged = uses_of(traffic.records(range(TOTAL // 2)))
    return scored(80.0, tuple(PRICES)).updated(logged.tables(tuple(PRICES))), logged


def test_the_cost_of_each_cell_is_billed_within_a_tenth_of_the_prediction(
    traffic: Traffic, uses: tuple[MeasuredUses, LoggedUses]
) -> None:
    """About 2,000 records measure a cell, and as many are billed."""
    cost = declared_uses(traffic.registry, CATEGORIES, measured=uses[0]).cost
    billed = uses_of(traffic.records(range(TOTAL // 2, TOTAL))).table("dollars", tuple(PRICES))
    assert cost is not None
    assert billed.count.min() > 1800
    np.testing.assert_allclose(cost / 1000, billed.mean, rtol=0.1)


@pytest.mark.parametrize(("row", "limit"), [("mean_cost", 2.0), ("mean_cost", 6.0), ("mean_latency_ms", 5000.0)])
def test_a_limit_is_kept_within_a_twentieth_on_held_out_requests(
    traffic: Traffic, uses: tuple[MeasuredUses, LoggedUses], row: str, limit: float
) -> None:
    mix = uses[1].mix(CATEGORIES, router="r1")
    assert mix is not None
    quality = np.array([[0.3, 0.9], [0.5, 0.7], [0.5, 0.8]])
    declared = declared_uses(traffic.registry, CATEGORIES, measured=uses[0])
    problem = Problem(CATEGORIES, tuple(PRICES), quality, mix[0] / mix[0].sum(), declared, {row: limit})
    plan = solve(problem, traffic=round_traffic(mix[1]))
    (predicted,) = routed_use(problem, plan, mix[1]).values()
    actual = traffic.dollars * 1000 if row == "mean_cost" else traffic.latency
    rows = range(TOTAL // 2, TOTAL)
    chosen = [int(expected_utility(plan, one).argmax()) for one in traffic.posterior[TOTAL // 2 :]]
    used = np.mean([actual[number, column] for number, column in zip(rows, chosen, strict=True)])
    assert used <= 1.05 * limit
    assert used == pytest.approx(predicted, rel=0.05)
    assert actual[TOTAL // 2 :, 1].mean() > limit  # of the large expert, which is the best in every category


# ------------------------------------------------------------------------------------------------- coe plan


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Two scored experts whose answers had 100 output tokens, and a log in which the large one's had 400."""
    path = tmp_path / "experts.yaml"
    path.write_text(
        """\
version: 1
categories: [{name: code, description: c}, {name: law, description: l}, {name: general, description: g}]
experts:
  - {name: small, model: m, runtime: external, base_url: 'http://h/v1', prices: {output: 1}}
  - {name: large, model: m, runtime: external, base_url: 'http://h/v1', prices: {output: 10}, active_parameters_b: 2}
assignment: {general: small}
"""
    )
    ids = [(f"{category}{number}", category) for category in CATEGORIES for number in range(40)]
    one = {"benchmark": "own"}
    prompts = [one | {"prompt_id": name, "prompt": name, "category": category, "label": ""} for name, category in ids]
    measured = {"answer": "a", "input_tokens": 10, "output_tokens": 100, "latency_ms": 900}
    answers = [one | {"prompt_id": name, "model": expert} for name, _ in ids for expert in ("small", "large")]
    tables = {
        "prompts": prompts,
        "scores": [row | {"score": float(row["model"] == "large")} for row in answers],
        "answers": [row | measured for row in answers],
    }
    for name, rows in tables.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    used = {"expert": "large", "input_tokens": 10, "output_tokens": 400, "time": time.time() - 60}
    write_log(path, [replace(answered(number, **used)) for number in range(1200)])
    return path


def write_log(config: Path, records: list[RoutingRecord]) -> None:
    settings = settings_for(config)
    log = open_log_and_feedback(load(settings.config, environ=settings.environ).log.url, base=settings.home)[0]

    async def append() -> None:
        await log.append(records)
        await log.aclose()

    asyncio.run(append())


def plan(config: Path, *words: str) -> Any:
    found = run("plan", config.parent, "--config", config, "--dry-run", *words)
    return json.loads(found) if "--json" in words else found


def test_a_plan_measures_uses_in_the_log_beside_the_scores(config: Path) -> None:
    report = plan(config, "--json")
    assert report["uses"]["logged"] == 1200
    cell = report["uses"]["by_category"]["code"]["large"]
    assert cell["requests"] == 1200
    assert cell["output_tokens"] == pytest.approx(400, rel=0.02)
    assert cell["dollars"] == pytest.approx(0.004, rel=0.02)
    assert cell["active_b_tokens"] == pytest.approx(2 * 410, rel=0.02)
    small = report["uses"]["by_category"]["code"]["small"]
    assert small["output_tokens"] == pytest.approx(400, rel=0.1)  # as the log of large
    assert "also come from 1200 requests in the routing log" in plan(config)


def test_the_weights_of_a_plan_are_the_mix_of_the_router_in_use(config: Path) -> None:
    settings, registry = settings_for(config), load(config, environ={})
    version = router_published(settings, "a", categories=CATEGORIES)
    mixes = {version: {"code": 0.5, "law": 0.3, "general": 0.2}, "other": {"code": 0.1, "law": 0.1, "general": 0.8}}
    logged = uses_of(
        answered(number, router=router, probabilities=mix)
        for number in range(MIN_TRAFFIC_REQUESTS)
        for router, mix in mixes.items()
    )

    def weights() -> list[float]:
        plan = plan_basis(settings, registry, config.parent, logged=logged).plan
        return [round(float(weight), 6) for weight in plan.problem.weights]

    assert weights() == [round(1 / 3, 6)] * 3  # no router is in use: those of the probes
    ArtifactStore(settings.artifacts, ROUTER).promote(version)
    assert weights() == [0.5, 0.3, 0.2]


def test_without_the_log_uses_are_those_of_the_scores(config: Path) -> None:
    report = plan(config, "--json", "--log-since", "0")
    assert report["uses"]["logged"] == 0
    assert report["uses"]["by_category"]["code"]["large"]["output_tokens"] == 100
    old = plan(config, "--json", "--log-since", "30s")
    assert old["uses"] == report["uses"]


def test_logged_times_of_shared_experts_are_left_out_since_they_contain_waits() -> None:
    experts = [{"name": "coder", "model": "own/coder", "runtime": "vllm", "memory_gb": 10}]
    shared = registry_of(experts=experts, residency={"devices": [{"name": "gpu0", "memory_gb": 10}]})
    logged, before = uses_of([answered(1)]), scored(experts=("coder",))
    counts = [_logged_tables(logged, before, one) for one in (shared, registry_of())]
    assert [one["latency_ms"].count.sum() for one in counts] == [0, 1]
    assert [one["input_tokens"].count.sum() for one in counts] == [1, 1]
