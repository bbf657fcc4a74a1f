"""The uses of arms are corrected by the logged requests that they answered."""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe.cli.common import settings_for
from coe.errors import StoreError
from coe.experts.recipes.policy_file import ArmPolicies
from coe.learning.recipes.columns import RecipeColumns
from coe.learning.recipes.logged_arms import MAX_PLANS, MAX_RATIO, Calibration, LoggedArms, PastArms
from coe.mapping import Uses, read_published
from coe.records import open_log_and_feedback
from coe.records.record import RecipeCall, RoutingRecord
from coe.registry import load
from tests.learning.samples import record
from tests.recipes.planned import (
    ANSWERS,
    CAREFUL,
    CATEGORIES,
    DECLARED,
    EXPERTS,
    columns,
    plan,
    published,
    write_config,
)
from tests.recipes.test_plan import COUNCIL, measure

PROBES = np.bincount(ANSWERS.labels, minlength=3)
"""Probes of each category."""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Probes of code and law, each answer of 100 output tokens."""
    return write_config(tmp_path)


def served(number: int = 0, *, goes_on: bool = True, ms: float = 300.0, **fields: Any) -> RoutingRecord:
    """A request of code that careful@2 of the plan p1 answered; `goes_on` to the large member or not."""
    calls = [RecipeCall("a", 0, "answered", 0, 100, 90.0), RecipeCall("b", 0, "answered", 0, 100, 90.0)]
    calls += [RecipeCall("large", 1, "answered", 0, 100, 200.0, accepted=True)] * goes_on
    usual = {"expert": "careful@2", "recipe": "careful", "plan": "p1", "steps": tuple(calls), "total_ms": ms}
    return record(f"r{number}", **usual | fields)


def logged(config: Path, records: Iterable[RoutingRecord]) -> LoggedArms:
    found = LoggedArms(load(config, environ={}))
    for one in records:
        found.add(one)
    return found


def past_of(config: Path, planned: RecipeColumns, records: Iterable[RoutingRecord], name: str = "p1") -> PastArms:
    policies = ArmPolicies(CATEGORIES, planned.policies, planned.written)
    return PastArms(name, policies, logged(config, records))


def sums(found: LoggedArms, measure: str, plan: str = "p1") -> list[float]:
    """Count and sum of a measure of careful@2 in code."""
    return [float(value) for value in found.sums(plan, "careful@2", measure, ["code"])[0]]


# ------------------------------------------------------------------------------------------------- what the log shows


def test_the_calls_of_a_request_are_summed_at_the_current_prices(config: Path) -> None:
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


@pytest.mark.parametrize(("unknown", "complete"), [(10, True), (11, False)])
def test_costs_that_some_requests_of_a_cell_lack_do_not_count(config: Path, unknown: int, complete: bool) -> None:
    """The requests without a cost called a later member, so the others are cheaper than the mean."""
    uncounted = (*served().steps[:2], RecipeCall("large", 1, "answered", ms=90.0))
    others = [served(number, goes_on=False) for number in range(1000 - unknown)]
    found = logged(config, [*others, *(served(number, steps=uncounted) for number in range(unknown))])
    assert sums(found, "cost") == ([990, 2 * 990] if complete else [0, 0])
    assert sums(found, "active_b")[0] == sums(found, "calls of large")[0] == 1000


def test_only_the_latest_plans_are_kept(config: Path) -> None:
    found = logged(config, (served(number, plan=f"p{number}") for number in range(MAX_PLANS + 1)))
    assert found.plans == tuple(f"p{number}" for number in range(1, MAX_PLANS + 1))


# ------------------------------------------------------------------------------------------------- what it corrects


def test_an_arm_costs_what_its_requests_did_as_if_they_were_probes(config: Path) -> None:
    plain = columns(config)
    expected = 2 + 12 * plain.uses.calls["careful@2"][0, 2]
    found = columns(config, past=[past_of(config, plain, (served(number) for number in range(900)))])
    share = 900 / (900 + PROBES[0] + 30)
    ratio = found.uses.cost / plain.uses.cost
    assert plain.uses.cost[0, 1] == pytest.approx(expected)
    assert 1.2 < 14 / plain.uses.cost[0, 1] < MAX_RATIO
    assert ratio[0, 1] == pytest.approx((14 / plain.uses.cost[0, 1]) ** share)
    np.testing.assert_allclose(ratio[1:], 1.0)
    np.testing.assert_allclose(ratio[:, [0, 2]], 1.0)
    calls = found.uses.calls["careful@2"][0] / plain.uses.calls["careful@2"][0]
    assert calls == pytest.approx([1.0, 1.0, 1 + share * (1 / plain.uses.calls["careful@2"][0, 2] - 1)])
    assert found.uses.latency_ms[0, 1] == pytest.approx(plain.uses.latency_ms[0, 1] ** (1 - share) * 300**share)
    assert found.uses.active_b[0, 1] == pytest.approx(plain.uses.active_b[0, 1] ** (1 - share) * 14**share)


def test_times_of_an_arm_with_a_member_that_shares_a_device_are_not_corrected(config: Path) -> None:
    """Also those of early stops, which did not call the member: they are shorter than the mean."""
    large = "{name: large, model: own/large, runtime: vllm, memory_gb: 10, active_parameters_b: 12"
    external = "{name: large, model: m, runtime: external, base_url: 'http://h/v1', active_parameters_b: 12"
    assert external in DECLARED
    shared = DECLARED.replace(external, large) + "residency: {devices: [{name: gpu0, memory_gb: 10}]}\n"
    plain = columns(config, declared=shared)
    records = [served(number, goes_on=number % 2 == 0, ms=900.0) for number in range(900)]
    found = columns(config, past=[past_of(config, plain, records)], declared=shared)
    np.testing.assert_array_equal(found.uses.latency_ms, plain.uses.latency_ms)
    assert abs(found.uses.cost[0, 1] / plain.uses.cost[0, 1] - 1) > 0.05


def test_requests_that_cost_what_replay_gives_change_nothing(config: Path) -> None:
    plain = columns(config)
    rate = float(plain.uses.calls["careful@2"][0, 2])
    records = [served(number, goes_on=number < round(1000 * rate)) for number in range(1000)]
    found = columns(config, past=[past_of(config, plain, records)])
    np.testing.assert_allclose(found.uses.cost, plain.uses.cost, rtol=0.002)
    np.testing.assert_allclose(found.uses.calls["careful@2"], plain.uses.calls["careful@2"], rtol=0.002)


def test_requests_are_compared_with_the_policies_that_they_had(config: Path) -> None:
    """The arm of the past plan called every step, as its requests did: the current one is not corrected."""
    plain = columns(config)
    policies = dict(plain.policies) | {"careful@2": plain.policies["careful@2"].never_stopping()}
    before = replace(plain, policies=policies)
    found = columns(config, past=[past_of(config, before, (served(number) for number in range(900)))])
    np.testing.assert_allclose(found.uses.cost, plain.uses.cost)
    np.testing.assert_allclose(found.uses.calls["careful@2"], plain.uses.calls["careful@2"])


def test_several_plans_correct_an_arm_together(config: Path) -> None:
    plain = columns(config)
    past = [
        past_of(config, plain, [served(number, plan=name) for number in range(450)], name=name) for name in ("p1", "p2")
    ]
    together = past_of(config, plain, [served(number) for number in range(900)])
    np.testing.assert_allclose(columns(config, past=past).uses.cost, columns(config, past=[together]).uses.cost)


@pytest.mark.parametrize(
    "recipes",
    [
        CAREFUL.replace("[[a, b], large]", "[a, large]"),
        CAREFUL.replace("careful", "other"),
    ],
    ids=["other steps", "another name"],
)
def test_requests_of_another_recipe_do_not_count(config: Path, recipes: str) -> None:
    past = past_of(config, columns(config), (served(number) for number in range(900)))
    plain, found = columns(config, recipes=recipes), columns(config, past=[past], recipes=recipes)
    assert found.arms
    np.testing.assert_array_equal(found.uses.cost, plain.uses.cost)


def test_a_few_requests_that_cost_far_more_change_little(config: Path) -> None:
    plain = columns(config)
    long = (*served().steps[:2], RecipeCall("large", 1, "answered", 0, 100_000, 200.0))
    found = columns(config, past=[past_of(config, plain, [served(number, steps=long) for number in range(3)])])
    assert 1.0 < found.uses.cost[0, 1] / plain.uses.cost[0, 1] < 1.02


def calibrated(config: Path, replayed: Sequence[float], records: Sequence[RoutingRecord], probes: float) -> Uses:
    """The corrected uses of careful@2 in code, whose calls and cost by replay are `replayed`."""
    *calls, cost = replayed
    both = np.full((1, 1), cost)
    uses = Uses(active_b=both, cost=both, latency_ms=both, calls={"careful@2": np.array([calls])})
    found = Calibration({"careful@2": EXPERTS}, ["code"], np.array([probes]))
    found.add(PastArms("p1", ArmPolicies(("code",), {}), logged(config, records)), uses, {"careful@2": 0})
    return found.corrected(uses, ["careful@2"])


def test_calls_that_replay_never_makes_are_corrected(config: Path) -> None:
    found = calibrated(config, [1, 1, 0, 2], [served(number) for number in range(920)], probes=50)
    share = 920 / (920 + 50 + 30)
    assert found.calls["careful@2"][0] == pytest.approx([1, 1, share])
    assert found.cost is not None
    assert found.cost[0, 0] == pytest.approx(2 * 7**share)


def test_many_requests_correct_by_more_than_the_limit_for_few(config: Path) -> None:
    records = [served(number, goes_on=False) for number in range(4000)]
    found = calibrated(config, [1, 1, 1, 14], records, probes=10)
    assert found.cost is not None
    assert MAX_RATIO < 14 / 2
    assert found.cost[0, 0] == pytest.approx(2, rel=0.03)
    assert found.calls["careful@2"][0] == pytest.approx([1, 1, 40 / 4040])
    few = calibrated(config, [1, 1, 1, 14], records[:10], probes=10)
    assert few.cost is not None
    assert few.cost[0, 0] == pytest.approx(14 * MAX_RATIO ** -((1 + 10 / 40) * 10 / 50))


@pytest.mark.parametrize(
    ("logged_share", "replayed", "corrected"),
    [(1.0, 0.4, 0.4 + 0.75 * 0.5), (1.0, 0.9, 1.0), (0.25, 0.2, 0.2 * (1 - 0.75 * 0.5))],
    ids=["more calls are added", "but at most as many as logged", "fewer calls are a ratio"],
)
def test_calls_of_another_policy_than_the_logged_one(
    config: Path, logged_share: float, replayed: float, corrected: float
) -> None:
    """Replay of the past policy calls the large member for half of the prompts."""

    def uses(rate: float) -> Uses:
        one = np.full((1, 1), 2.0)
        return Uses(active_b=one, cost=one, latency_ms=one, calls={"careful@2": np.array([[1, 1, rate]])})

    records = [served(number, goes_on=number % 100 < 100 * logged_share) for number in range(300)]
    found = Calibration({"careful@2": EXPERTS}, ["code"], np.array([70.0]))
    found.add(PastArms("p1", ArmPolicies(("code",), {}), logged(config, records)), uses(0.5), {"careful@2": 0})
    assert found.corrected(uses(replayed), ["careful@2"]).calls["careful@2"][0, 2] == pytest.approx(corrected)


@pytest.mark.parametrize("prompts", [1200, 200])
def test_a_fuse_is_corrected_by_its_requests(config: Path, prompts: int) -> None:
    """Each request counts as much as a prompt that the fuse was measured on."""
    measure(config, prompts=prompts)
    plain = columns(config, recipes=COUNCIL)
    calls = (
        RecipeCall("a", 0, "answered", 0, 200, 50.0),
        RecipeCall("b", 0, "answered", 0, 400, 80.0),
        RecipeCall("large", 1, "answered", 0, 100, 300.0, accepted=True),
    )
    records = [served(number, expert="council@1", recipe="council", steps=calls) for number in range(900)]
    found = columns(config, past=[past_of(config, plain, records)], recipes=COUNCIL)
    share = 900 / (900 + np.count_nonzero(ANSWERS.labels[:prompts] == 0) + 30)
    assert found.uses.cost[0, 0] / plain.uses.cost[0, 0] == pytest.approx(2**share)
    np.testing.assert_allclose(found.uses.calls["council@1"], plain.uses.calls["council@1"])
    before = replace(plain, written={"council@1": replace(plain.written["council@1"], writing="other")})
    kept = columns(config, past=[past_of(config, before, records)], recipes=COUNCIL)
    np.testing.assert_array_equal(kept.uses.cost, plain.uses.cost)


# ------------------------------------------------------------------------------------------------- coe plan


def planned_cost(config: Path) -> np.ndarray[Any, Any]:
    problem = read_published(published(config), "v").record.problem  # type: ignore[union-attr]
    assert problem.uses.cost is not None
    return problem.uses.cost[:, problem.experts.index("careful@2")]


def append(config: Path, records: Sequence[RoutingRecord]) -> None:
    """Write records to the routing log."""
    log = open_log_and_feedback(load(config, environ={}).log.url, base=settings_for(config).home)[0]

    async def written() -> None:
        await log.append(records)
        await log.aclose()

    asyncio.run(written())


def of_plan(version: str, count: int = 300, first: int = 0, **fields: Any) -> list[RoutingRecord]:
    """Requests of a minute ago that a plan's arm answered; a third of them went on."""
    usual: dict[str, Any] = {"plan": version, "time": time.time() - 60, "stream": True} | fields
    return [served(first + number, goes_on=number % 3 == 0, **usual) for number in range(count)]


def test_a_plan_corrects_its_arms_by_the_requests_since_the_plan_before(config: Path) -> None:
    plan(config)
    before, version = planned_cost(config), published(config).name
    append(config, [*of_plan(version), *of_plan("deleted", first=1000, category="law")])
    plan(config)
    found = planned_cost(config)
    share = 300 / (300 + PROBES[0] + 30)
    assert 0.7 * before[0] > 6  # a third of these requests went on, 62 % of the probes
    assert found[0] == pytest.approx(before[0] * (6 / before[0]) ** share, rel=0.02)
    assert found[1] == pytest.approx(before[1], rel=0.02)
    plan(config, "--log-since", "0")
    assert planned_cost(config) == pytest.approx(before)


def test_a_log_that_fails_midway_corrects_no_arm(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan(config)
    before, version = planned_cost(config), published(config).name

    class Failing:
        def records(self, **_: float) -> Iterator[list[RoutingRecord]]:
            yield of_plan(version)
            raise StoreError("the disk failed")

    @contextmanager
    def opened(url: str, *, base: Path) -> Iterator[Failing]:
        yield Failing()

    monkeypatch.setattr("coe.jobs.plan.open_logs", opened)
    plan(config)
    np.testing.assert_array_equal(planned_cost(config), before)


@pytest.mark.parametrize("changed", ["a", "large"])
def test_requests_to_a_model_that_another_one_replaced_do_not_count(config: Path, changed: str) -> None:
    plan(config)
    append(config, of_plan(published(config).name))
    text = config.read_text().replace(f"{{name: {changed}, model: m,", f"{{name: {changed}, model: other,")
    assert "other" in text
    config.write_text(text)
    plan(config)
    found = planned_cost(config)
    plan(config, "--log-since", "0")
    np.testing.assert_allclose(found, planned_cost(config), rtol=0.02)
