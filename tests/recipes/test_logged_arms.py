"""The uses of arms are corrected by the logged requests that they answered."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe.cli.common import settings_for
from coe.experts.recipes.policy_file import ArmPolicies
from coe.learning.evaluation.quality import read_quality
from coe.learning.recipes.columns import RecipeColumns
from coe.learning.recipes.logged_arms import MAX_PLANS, MAX_RATIO, LoggedArms, PastArms
from coe.learning.recipes.measured import columns_of_recipes
from coe.mapping import read_published
from coe.records import open_log
from coe.records.record import RecipeCall, RoutingRecord
from coe.registry import load
from tests.learning.samples import record
from tests.recipes.planned import ANSWERS, CAREFUL, DECLARED, plan, published, write_config
from tests.recipes.test_plan import COUNCIL, measure

CATEGORIES, EXPERTS = ("code", "law", "general"), ("a", "b", "large")
PROBES = np.bincount(ANSWERS.labels, minlength=3)
"""Probes of each category."""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Probes of code and law, each answer of 100 output tokens."""
    return write_config(tmp_path)


def columns(config: Path, past: Sequence[PastArms] = (), recipes: str = CAREFUL) -> RecipeColumns:
    config.write_text(DECLARED + recipes)
    data = read_quality(config.parent, benchmark="own")
    return columns_of_recipes(
        config.parent,
        data,
        load(config, environ={}),
        rows=range(len(data.prompts)),
        experts=EXPERTS,
        categories=CATEGORIES,
        streamed=0.0,
        past=past,
    )


def served(number: int = 0, *, goes_on: bool = True, ms: float = 300.0, **fields: Any) -> RoutingRecord:
    """A request of code that careful@2 of the plan p1 answered; `goes_on` to the large member or not."""
    calls = [RecipeCall("a", 0, "answered", 0, 100, 90.0), RecipeCall("b", 0, "answered", 0, 100, 90.0)]
    calls += [RecipeCall("large", 1, "answered", 0, 100, 200.0, accepted=True)] * goes_on
    usual = {"expert": "careful@2", "recipe": "careful", "plan": "p1", "steps": tuple(calls), "total_ms": ms}
    return record(f"r{number}", **usual | fields)


def logged(config: Path, records: Iterable[RoutingRecord]) -> LoggedArms:
    found = LoggedArms(load(config, environ={}))
    for _ in found.observe([list(records)]):
        pass
    return found


def past_of(config: Path, planned: RecipeColumns, records: Iterable[RoutingRecord], name: str = "p1") -> PastArms:
    policies = ArmPolicies(CATEGORIES, planned.policies, planned.written)
    return PastArms(name, policies, logged(config, records))


def sums(found: LoggedArms, measure: str, plan: str = "p1") -> list[float]:
    """Count and sum of a measure of careful@2 in code."""
    return [float(value) for value in found.sums(plan, "careful@2", measure, ["code"])[0]]


# ------------------------------------------------------------------------------------------------- what the log shows


def test_the_calls_of_a_request_are_summed_at_the_present_prices(config: Path) -> None:
    config.write_text(DECLARED.replace("prices: {output: 120}", "prices: {output: 60, input: 30, cached_input: 3}"))
    dear = RecipeCall("large", 1, "cut_off", 200, 100, 200.0, cached_tokens=100)
    usual = served().steps
    found = logged(config, [served(1, cost=99.0, steps=(*usual[:2], dear)), served(2, goes_on=False, ms=100.0)])
    assert sums(found, "cost") == pytest.approx([2, 2 * 2 + (100 * 30 + 100 * 3 + 100 * 60) / 1000])
    assert sums(found, "active_b") == [2, 2 * 2 + 12]
    assert sums(found, "latency_ms") == [2, 400]
    assert sums(found, "calls of large") == [2, 1]
    assert sums(found, "calls of a") == [2, 2]


@pytest.mark.parametrize(
    "fields",
    [
        {"plan": ""},
        {"recipe": "", "steps": ()},
        {"fallback_from": "careful@2", "expert": "large"},
        {"purpose": "score"},
        {"outcome": "aborted"},
        {"category": "gone"},
    ],
)
def test_requests_that_no_arm_of_a_plan_answered_do_not_count(config: Path, fields: dict[str, Any]) -> None:
    found = logged(config, [served(**fields)])
    assert sums(found, "cost") == sums(found, "cost", plan="") == [0, 0]
    assert not found.plans


def test_calls_that_were_not_made_and_unknown_tokens_do_not_count(config: Path) -> None:
    usual = served().steps
    skipped = (*usual[:2], RecipeCall("large", 1, "skipped"))
    uncounted = (*usual[:2], RecipeCall("large", 1, "answered", ms=90.0))
    failed = (*usual[:2], RecipeCall("large", 1, "timeout", ms=90.0))
    assert sums(logged(config, [served(steps=skipped)]), "calls of large") == [1, 0]
    assert sums(logged(config, [served(steps=uncounted)]), "cost") == [0, 0]
    assert sums(logged(config, [served(steps=failed)]), "cost") == [1, 2]
    assert sums(logged(config, [served(attempts=2)]), "latency_ms") == [0, 0]


def test_times_of_members_that_share_a_device_do_not_count(config: Path) -> None:
    large = "{name: large, model: own/large, runtime: vllm, memory_gb: 10, active_parameters_b: 12"
    declared = "{name: large, model: m, runtime: external, base_url: 'http://h/v1', active_parameters_b: 12"
    text = DECLARED.replace(declared, large)
    config.write_text(text + "residency: {devices: [{name: gpu0, memory_gb: 10}]}\n")
    found = logged(config, [served(1), served(2, goes_on=False)])
    assert sums(found, "latency_ms") == [1, 300]
    assert sums(found, "cost")[0] == 2


def test_only_the_latest_plans_are_kept(config: Path) -> None:
    found = logged(config, (served(number, plan=f"p{number}") for number in range(MAX_PLANS + 1)))
    assert found.plans == tuple(f"p{number}" for number in range(1, MAX_PLANS + 1))


# ------------------------------------------------------------------------------------------------- what it corrects


def test_an_arm_costs_what_its_requests_did_as_if_they_were_probes(config: Path) -> None:
    plain = columns(config)
    expected = 2 + 12 * plain.calls["careful@2"][0, 2]
    found = columns(config, [past_of(config, plain, (served(number) for number in range(900)))])
    share = 900 / (900 + PROBES[0] + 30)
    ratio = found.cost / plain.cost
    assert plain.cost[0, 1] == pytest.approx(expected)
    assert 1.2 < 14 / plain.cost[0, 1] < MAX_RATIO
    assert ratio[0, 1] == pytest.approx((14 / plain.cost[0, 1]) ** share)
    np.testing.assert_allclose(ratio[1:], 1.0)
    np.testing.assert_allclose(ratio[:, [0, 2]], 1.0)
    calls = found.calls["careful@2"][0] / plain.calls["careful@2"][0]
    assert calls == pytest.approx([1.0, 1.0, (1 / plain.calls["careful@2"][0, 2]) ** share])
    assert found.latency_ms[0, 1] == pytest.approx(plain.latency_ms[0, 1] ** (1 - share) * 300**share)
    assert found.active_b[0, 1] == pytest.approx(plain.active_b[0, 1] ** (1 - share) * 14**share)


def test_requests_that_cost_what_replay_gives_change_nothing(config: Path) -> None:
    plain = columns(config)
    rate = float(plain.calls["careful@2"][0, 2])
    records = [served(number, goes_on=number < round(1000 * rate)) for number in range(1000)]
    found = columns(config, [past_of(config, plain, records)])
    np.testing.assert_allclose(found.cost, plain.cost, rtol=0.002)
    np.testing.assert_allclose(found.calls["careful@2"], plain.calls["careful@2"], rtol=0.002)


def test_requests_are_compared_with_the_policies_that_they_had(config: Path) -> None:
    """The arm of the past plan called every step, as its requests did: the present one is not corrected."""
    plain = columns(config)
    policies = dict(plain.policies) | {"careful@2": plain.policies["careful@2"].never_stopping()}
    before = replace(plain, policies=policies)
    found = columns(config, [past_of(config, before, (served(number) for number in range(900)))])
    np.testing.assert_allclose(found.cost, plain.cost)
    np.testing.assert_allclose(found.calls["careful@2"], plain.calls["careful@2"])


def test_several_plans_correct_an_arm_together(config: Path) -> None:
    plain = columns(config)
    past = [
        past_of(config, plain, [served(number, plan=name) for number in range(450)], name=name) for name in ("p1", "p2")
    ]
    together = past_of(config, plain, [served(number) for number in range(900)])
    np.testing.assert_allclose(columns(config, past).cost, columns(config, [together]).cost)


@pytest.mark.parametrize(
    "recipes",
    [
        CAREFUL.replace("[[a, b], large]", "[a, large]"),
        CAREFUL.replace("careful", "other"),
        CAREFUL.replace("}]", ", max_loss: 0.5}]"),
    ],
    ids=["other steps", "another name", "max_loss"],
)
def test_requests_of_another_recipe_or_with_a_bound_do_not_count(config: Path, recipes: str) -> None:
    bounded = "max_loss" in recipes
    before = columns(config, recipes=recipes if bounded else CAREFUL)
    past = past_of(config, before, (served(number) for number in range(900)))
    plain, found = columns(config, recipes=recipes), columns(config, [past], recipes=recipes)
    assert found.arms
    np.testing.assert_array_equal(found.cost, plain.cost)


def test_a_few_requests_that_cost_far_more_change_little(config: Path) -> None:
    plain = columns(config)
    long = (*served().steps[:2], RecipeCall("large", 1, "answered", 0, 100_000, 200.0))
    found = columns(config, [past_of(config, plain, [served(number, steps=long) for number in range(3)])])
    assert 1.0 < found.cost[0, 1] / plain.cost[0, 1] < 1.02


def test_a_fuse_is_corrected_by_its_requests(config: Path) -> None:
    measure(config)
    plain = columns(config, recipes=COUNCIL)
    calls = (
        RecipeCall("a", 0, "answered", 0, 200, 50.0),
        RecipeCall("b", 0, "answered", 0, 400, 80.0),
        RecipeCall("large", 1, "answered", 0, 100, 300.0, accepted=True),
    )
    records = [served(number, expert="council@1", recipe="council", steps=calls) for number in range(900)]
    found = columns(config, [past_of(config, plain, records)], recipes=COUNCIL)
    share = 900 / (900 + PROBES[0] + 30)
    assert found.cost[0, 0] / plain.cost[0, 0] == pytest.approx(2**share)
    np.testing.assert_allclose(found.calls["council@1"], plain.calls["council@1"])
    before = replace(plain, written={"council@1": replace(plain.written["council@1"], writing="other")})
    kept = columns(config, [past_of(config, before, records)], recipes=COUNCIL)
    np.testing.assert_array_equal(kept.cost, plain.cost)


# ------------------------------------------------------------------------------------------------- coe plan


def planned_cost(config: Path) -> np.ndarray[Any, Any]:
    problem = read_published(published(config), "v").record.problem  # type: ignore[union-attr]
    assert problem.uses.cost is not None
    return problem.uses.cost[:, problem.experts.index("careful@2")]


def test_a_plan_corrects_its_arms_by_the_requests_since_the_plan_before(config: Path) -> None:
    plan(config)
    before, version = planned_cost(config), published(config).name
    settings = settings_for(config)
    log = open_log(load(config, environ={}).log.url, base=settings.home)
    now = time.time() - 60
    records = [served(number, goes_on=number % 3 == 0, plan=version, time=now, stream=True) for number in range(300)]
    unknown = [served(1000 + number, plan="deleted", time=now, category="law", stream=True) for number in range(300)]

    async def append() -> None:
        await log.append([*records, *unknown])
        await log.aclose()

    asyncio.run(append())
    plan(config)
    found = planned_cost(config)
    share = 300 / (300 + PROBES[0] + 30)
    assert 0.7 * before[0] > 6  # a third of these requests went on, 62 % of the probes
    assert found[0] == pytest.approx(before[0] * (6 / before[0]) ** share, rel=0.02)
    assert found[1] == pytest.approx(before[1], rel=0.02)
    plan(config, "--log-since", "0")
    assert planned_cost(config) == pytest.approx(before)
