"""A recipe that breaks its loss bound in service: found in the log, stored, shared, reported, served with all steps."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from coe.artifacts.kinds import ASSIGNMENT
from coe.artifacts.redis import open_shared
from coe.artifacts.store import ArtifactStore
from coe.experts.recipes.agreement import AnswerWeights
from coe.experts.recipes.policy import RecipePolicy, default_policy
from coe.experts.recipes.policy_file import RECIPES_FILE, ArmPolicies
from coe.jobs.status_report import status_report
from coe.learning.monitoring.alarms import loss_alarms
from coe.learning.monitoring.loss_bounds import LOSS_BOUNDS_FILE, LossBounds, publish_broken, read_broken
from coe.learning.monitoring.traffic_report import TrafficReport
from coe.mapping.plan_file import ASSIGNMENT_FILE
from coe.records import open_log_and_feedback
from coe.records.feedback import SKIPPED, AuditDetail, Feedback
from coe.registry import Registry
from coe.runtime.artifact_sync import ArtifactSync
from coe.settings import Settings
from gateway.observability.metrics import Metrics, exposition
from gateway.observability.state_metrics import TrafficMetrics
from gateway.process.bound_watch import BoundWatch
from gateway.serving_state import Serving, ServingState
from tests.fakes import gateway_of, registry_of
from tests.gateway import words_server
from tests.gateway.served import SQLITE, Served, chat, serving
from tests.observability.pages import value
from tests.recipes.member_server import MemberServer
from tests.recipes.members import plan_with
from tests.records.redis_server import RedisServer

pytestmark = pytest.mark.anyio
CAREFUL: dict[str, Any] = {"name": "careful", "cascade": ["coder", "generalist"], "max_loss": 0.01, "audit_rate": 1}
ARM = "careful@2"


def registry(**changes: Any) -> Registry:
    return registry_of(recipes=[CAREFUL], log={"url": SQLITE}, assignment={"general": "generalist"}, **changes)


def fitted(declared: Registry, *, loss_per_difference: float = 0.5) -> RecipePolicy:
    """A policy that stops after the first answer."""
    policy = default_policy(declared.declared_recipes[0], categories=3)
    steps = [replace(step, weights=_by_category(step.weights)) for step in policy.steps]
    return replace(policy, steps=tuple(steps), loss_per_difference=loss_per_difference)


def _by_category(weights: AnswerWeights) -> AnswerWeights:
    return AnswerWeights(np.hstack((weights.member, np.zeros((len(weights.member), 3)))), np.zeros(4))


def policies_of(declared: Registry, **changes: Any) -> ArmPolicies:
    """As they are read from a plan."""
    made = ArmPolicies(declared.category_names, {ARM: fitted(declared, **changes)})
    return ArmPolicies.from_json(made.to_json())


def audit(number: int, outcome: str, *, policies: str, recipe: str = "careful") -> Feedback:
    detail = AuditDetail(recipe, f"{recipe}@2", policies, 1.0)
    name = f"req_{number:032x}"
    return Feedback(f"audit:{name}", name, 1e9 + number, "audit", outcome, audit=detail)


def differing(count: int, *, policies: str, first: int = 0) -> list[Feedback]:
    return [audit(first + number, "differed", policies=policies) for number in range(count)]


# ------------------------------------------------------------------------------------------- from the log


def test_only_audits_of_the_policies_in_use_count_failed_ones_as_no_loss_and_skipped_ones_not() -> None:
    declared = registry()
    policies = policies_of(declared)
    bounds = LossBounds(declared, policies)
    own = [audit(number, name, policies=policies.version) for number, name in enumerate(("differed", "agreed"))]
    own += [audit(5 + number, name, policies=policies.version) for number, name in enumerate(("failed", "last_step"))]
    own += [audit(20 + number, name, policies=policies.version) for number, name in enumerate(sorted(SKIPPED))]
    other = [audit(7, "differed", policies="other"), audit(8, "differed", policies=policies.version, recipe="gone")]
    rating = Feedback("1", "r", 1.0, "thumb", -1)
    bounds.add([*own, *other, rating])
    (found,) = bounds.by_recipe.values()
    assert (found.test.audited, found.test.differed) == (4, 1)
    assert found.outcomes == Counter(["differed", "agreed", "failed", "last_step", *SKIPPED])
    assert bounds.broken == frozenset()


def test_a_broken_bound_is_found_as_early_however_many_audits_are_skipped() -> None:
    declared = registry()
    policies = policies_of(declared)
    found = []
    for skipped in (0, 9):
        bounds, number = LossBounds(declared, policies), 0
        while not bounds.broken and number < 20_000:
            names = ["differed" if number % 10 == 0 else "agreed", *["skipped_busy"] * skipped]
            bounds.add([audit(number * 10 + one, name, policies=policies.version) for one, name in enumerate(names)])
            number += 1
        found.append(number)
    assert found[0] == found[1] < 500


def test_a_recipe_whose_audits_mostly_compare_nothing_is_an_alarm() -> None:
    declared = registry()
    policies = policies_of(declared)
    for compared, alarms in ((40, ["audits"]), (60, [])):
        bounds = LossBounds(declared, policies)
        names = ["agreed"] * compared + ["skipped_unavailable"] * 40 + ["failed"] * 10
        bounds.add([audit(number, name, policies=policies.version) for number, name in enumerate(names)])
        found = loss_alarms(bounds.by_recipe.values())
        assert [alarm.kind for alarm in found] == alarms
        assert bounds.by_recipe["careful"].to_json()["hardly_tested"] is bool(alarms)
    bounds.add([audit(999 + number, "failed", policies=policies.version) for number in range(20)])
    (alarm,) = loss_alarms(bounds.by_recipe.values())
    assert "careful: 70 of 130 audits compared nothing (skipped_unavailable 40, failed 30)" in alarm.sentence


def test_a_recipe_without_a_bound_or_without_a_fitted_policy_is_not_tested() -> None:
    declared = registry()
    assert LossBounds(declared, ArmPolicies(declared.category_names, {})).by_recipe == {}
    free = registry_of(recipes=[{**CAREFUL, "max_loss": None}])
    assert LossBounds(free, policies_of(declared)).by_recipe == {}


def test_broken_bounds_are_stored_once_and_hold_for_their_policies_alone(tmp_path: Path) -> None:
    declared, settings = registry(), settings_in(tmp_path, registry())
    policies = policies_of(declared)
    bounds = LossBounds(declared, policies)
    assert publish_broken(settings, bounds) == frozenset()
    assert not (settings.artifacts / LOSS_BOUNDS_FILE).exists()
    bounds.add(differing(20, policies=policies.version))
    assert publish_broken(settings, bounds) == {"careful"}
    assert publish_broken(settings, bounds) == frozenset()
    path = settings.artifacts / LOSS_BOUNDS_FILE
    assert read_broken(path, policies.version, declared) == {"careful"}
    assert read_broken(path, "another", declared) == read_broken(path, "", declared) == frozenset()
    for max_loss, still in ((0.005, True), (0.02, False), (None, False)):
        changed = registry_of(recipes=[{**CAREFUL, "max_loss": max_loss}])
        assert (read_broken(path, policies.version, changed) == {"careful"}) is still
    path.write_bytes(b'{"broken": ')
    assert read_broken(path, policies.version, declared) == frozenset()


def settings_in(folder: Path, declared: Registry) -> Settings:
    folder.mkdir(exist_ok=True)
    (folder / "experts.yaml").write_bytes(orjson.dumps(declared.model_dump(mode="json", exclude_unset=True)))
    return Settings.read({}, config=folder / "experts.yaml")


def promote_plan(settings: Settings, declared: Registry) -> ArmPolicies:
    """Put a plan with the arm into use, and return its policies."""
    policies, store = policies_of(declared), ArtifactStore(settings.artifacts, ASSIGNMENT)
    with store.draft() as draft:
        (draft / ASSIGNMENT_FILE).write_bytes(plan_with(ARM, declared, quality=2.0).to_json())
        (draft / RECIPES_FILE).write_bytes(policies.to_json())
        version = store.publish(draft, categories=declared.category_names, data="d", metrics={}).manifest.version
    store.promote(version)
    return policies


async def logged(settings: Settings, events: list[Feedback]) -> None:
    log = open_log_and_feedback(SQLITE, base=settings.home)[1]
    await log.append(events)
    await log.aclose()


async def test_the_gateway_finds_a_broken_bound_in_the_log_and_the_next_state_calls_all_steps(tmp_path: Path) -> None:
    declared = registry()
    settings = settings_in(tmp_path, declared)
    policies = promote_plan(settings, declared)
    async with gateway_of(declared) as gateway:
        before = words_server.read(settings)
        assert (before.policies.version, before.policies.broken) == (policies.version, frozenset())
        composition, access = gateway.serving_state.serving.composition, gateway.serving_state.serving.access
        state = ServingState(Serving(composition, access, policies=before.policies))
        log = open_log_and_feedback(SQLITE, base=settings.home)[1]
        watch = BoundWatch(state, log, settings)
        await log.append([audit(number, "agreed", policies=policies.version) for number in range(450)])
        await watch.read()
        assert watch.evidence() == {("careful",): 1.0}
        await log.append(differing(19, policies=policies.version, first=500))
        await watch.read()
        assert watch.bounds is not None
        assert watch.bounds.by_recipe["careful"].test.audited == 469  # each event once
        await log.append(differing(20, policies=policies.version, first=600))
        await watch.read()
        await log.aclose()
    after = words_server.read(settings)
    assert after.policies.broken == {"careful"}
    gain = after.policies.by_arm[ARM].steps[0].gain
    assert gain is not None
    assert gain.tolist() == [1.0, *[0.0] * (len(gain) - 1)]


def test_status_reports_the_bound_and_raises_an_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coe.runtime.active_state.load_active_state", words_server.read)
    declared = registry()
    settings = settings_in(tmp_path, declared)
    policies = promote_plan(settings, declared)
    asyncio.run(logged(settings, [audit(0, "agreed", policies=policies.version)]))
    report = status_report(settings, now=2e9)
    assert (report["recipes"][0]["audited"], report["recipes"][0]["broken"], report["alarms"]) == (1, False, [])
    asyncio.run(logged(settings, differing(20, policies=policies.version, first=1)))
    report = status_report(settings, now=2e9)
    (alarm,) = report["alarms"]
    assert (alarm["kind"], alarm["expert"]) == ("max_loss", "careful")
    assert "20 of 21 audited answers differ, where 2.0% may" in alarm["sentence"]
    assert not (settings.artifacts / LOSS_BOUNDS_FILE).exists()  # a report changes nothing


async def test_a_broken_or_hardly_tested_bound_is_an_alarm_in_the_metrics(tmp_path: Path) -> None:
    declared = registry()
    async with gateway_of(declared) as gateway:
        state = gateway.serving_state
        metrics = Metrics()
        path = tmp_path / "report.json"
        TrafficMetrics(path, state).register(metrics)
        assert value(exposition([metrics.registry.families()]), "coe_alarm", kind="max_loss", expert="careful") == 0
        broken = policies_of(declared).without_early_stops({"careful"})
        state.replace(replace(state.serving, policies=broken))
        assert value(exposition([metrics.registry.families()]), "coe_alarm", kind="max_loss", expert="careful") == 1
        for named in ((), ("careful",)):
            path.write_bytes(TrafficReport(1.0, {"audits": named}).to_json())
            page = exposition([metrics.registry.families()])
            assert value(page, "coe_alarm", kind="audits", expert="careful") == len(named)


def test_machines_with_shared_artifacts_take_over_a_broken_bound(tmp_path: Path, redis_url: str) -> None:
    declared = registry(artifacts=redis_url)
    here, there = settings_in(tmp_path / "here", declared), settings_in(tmp_path / "there", declared)
    policies = policies_of(declared)
    bounds = LossBounds(declared, policies)
    bounds.add(differing(20, policies=policies.version))
    publish_broken(here, bounds)
    share = open_shared(redis_url)
    assert share is not None
    ArtifactSync(there, share).sync()
    share.close()
    assert read_broken(there.artifacts / LOSS_BOUNDS_FILE, policies.version, declared) == {"careful"}


async def test_a_broken_bound_holds_here_while_redis_is_down_or_the_declaration_is_edited(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    declared = registry(artifacts=redis_server.url)
    settings = settings_in(tmp_path, declared)
    policies = promote_plan(settings, declared)
    settings.config.write_text("version: ")
    path = settings.artifacts / LOSS_BOUNDS_FILE
    async with gateway_of(declared) as gateway:
        state = ServingState(replace(gateway.serving_state.serving, policies=policies))
        log = open_log_and_feedback(SQLITE, base=settings.home)[1]
        await log.append(differing(20, policies=policies.version))
        watch = BoundWatch(state, log, settings)
        redis_server.kill()
        await watch.read()
        assert read_broken(path, policies.version, declared) == {"careful"}
        redis_server.start()
        await watch.read()
        await log.aclose()
    share = open_shared(redis_server.url)
    assert share is not None
    share.fetch_file(LOSS_BOUNDS_FILE, tmp_path / "there")
    share.close()
    assert (tmp_path / "there" / LOSS_BOUNDS_FILE).read_bytes() == path.read_bytes()


async def test_a_broken_bound_that_cannot_be_stored_is_logged_once_and_stored_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    declared = registry()
    settings = settings_in(tmp_path, declared)
    policies = promote_plan(settings, declared)
    path = settings.artifacts / LOSS_BOUNDS_FILE
    path.mkdir()  # no file can take its place, as on a full disk
    async with gateway_of(declared) as gateway:
        state = ServingState(replace(gateway.serving_state.serving, policies=policies))
        log = open_log_and_feedback(SQLITE, base=settings.home)[1]
        await log.append(differing(20, policies=policies.version))
        watch = BoundWatch(state, log, settings)
        for _ in range(3):
            await watch.read()
        path.rmdir()
        await watch.read()
        await log.aclose()
    assert read_broken(path, policies.version, declared) == {"careful"}
    [warning, _] = [one.getMessage() for one in caplog.records if "loss bound" in one.getMessage()]
    assert f"loss bounds: that of careful is broken, but takes no effect until {path} can be written" in warning
    assert [one.name for one in settings.artifacts.iterdir() if one.name.startswith(".loss")] == []


# ------------------------------------------------------------------------------------------- on real ports


@asynccontextmanager
async def served_plan(folder: Path, *members: MemberServer) -> AsyncIterator[tuple[Served, Settings, ArmPolicies]]:
    """A gateway whose plan has the arm, over these members."""
    async with AsyncExitStack() as stack:
        for member in members:
            await member.start()
            stack.push_async_callback(member.kill)
        experts = [{"name": one.name, "model": one.name, "runtime": "external", "base_url": one.url} for one in members]
        changes = {"experts": experts, "assignment": {"general": "generalist"}, "recipes": [CAREFUL]}
        declared = registry(experts=experts)
        policies = promote_plan(settings_in(folder, declared), declared)
        served = await stack.enter_async_context(serving(folder, **changes))
        yield served, Settings.read({}, config=folder / "experts.yaml"), policies


async def test_a_running_gateway_audits_and_takes_a_recipe_back_to_its_last_step(tmp_path: Path) -> None:
    coder, generalist = MemberServer("coder", "7"), MemberServer("generalist", "8")
    async with served_plan(tmp_path, coder, generalist) as (served, settings, policies):

        async def steps() -> tuple[str, str, str]:
            async with served.client.post(f"{served.url}/v1/chat/completions", json=chat("careful")) as response:
                await response.read()
                names = ("x-coe-expert", "x-coe-steps", "x-request-id")
                expert, count, request_id = (response.headers[name] for name in names)
                return expert, count, request_id

        async def feedback(request_id: str) -> list[dict[str, Any]]:
            async with served.client.get(f"{served.url}/v1/records/{request_id}") as response:
                found: list[dict[str, Any]] = (await response.json()).get("feedback", [])
                return found

        expert, count, request_id = await steps()
        assert (expert, count) == ("coder", "1")
        async with asyncio.timeout(60):
            while not (events := await feedback(request_id)):
                await asyncio.sleep(0.02)
        assert [(one["kind"], one["value"]) for one in events] == [("audit", "differed")]
        assert (events[0]["audit"]["arm"], events[0]["audit"]["policies"]) == (ARM, policies.version)
        bounds = LossBounds(registry(), policies)
        bounds.add(differing(20, policies=policies.version))
        publish_broken(settings, bounds)  # as the gateway's own watch does at its next reading
        async with asyncio.timeout(60):
            while (found := (await steps())[:2]) == ("coder", "1"):
                await asyncio.sleep(0.05)
        assert found == ("generalist", "2")
        assert await served.metric('coe_alarm{kind="max_loss",expert="careful"}') == 1
