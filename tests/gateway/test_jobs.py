"""Job processes of the gateway: bounded, one at a time, and ended with the gateway."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from coe.errors import InvalidRequest, JobUnavailable
from coe.settings import Settings
from gateway.process import jobs as solver_module
from gateway.process.jobs import Jobs, PlanSolver
from tests.admin.samples import measured_registry, planned, settings_in

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long time limit, so that a plan is solved in time on a busy machine."""
    monkeypatch.setattr(solver_module, "SOLVE_TIMEOUT_SECONDS", 240.0)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent.parent))
    names = ("code", "art", "general")  # `coe check` requires prompts to train on
    categories = [{"name": name, "description": name, "examples": [f"{name} one", f"{name} two"]} for name in names]
    return settings_in(tmp_path, measured_registry(categories=categories))


def children() -> list[psutil.Process]:
    """Return the running processes of `coe` verbs, without zombies."""
    found = []
    for one in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # ZombieProcess is one: it ended meanwhile
            if "coe.cli" in " ".join(one.cmdline()):
                found.append(one)
    return found


async def test_a_verb_reports_as_it_would_on_the_command_line(settings: Settings) -> None:
    async with Jobs(settings) as jobs:
        found = await jobs.run("check", seconds=240, needs=())
    assert found["experts"] == ["coder", "painter", "generalist"]


async def test_a_failure_has_the_message_of_the_command(settings: Settings) -> None:
    async with Jobs(settings) as jobs:
        with pytest.raises(JobUnavailable, match=r"`coe report` failed: .*no router is trained yet; run `coe train`"):
            await jobs.run("report", seconds=240, needs=())
        with pytest.raises(JobUnavailable, match="failed: it printed no JSON"):
            await jobs.run("check", "--help", seconds=240, needs=())


async def test_what_takes_too_long_is_ended(settings: Settings) -> None:
    async with Jobs(settings) as jobs:
        with pytest.raises(JobUnavailable, match=r"`coe check` took more than 0\.01 s"):
            await jobs.run("check", seconds=0.01, needs=())
    assert children() == []


async def test_the_process_of_a_plan_answers_one_after_the_other_and_is_gone_in_the_end(settings: Settings) -> None:
    version, _ = planned(settings, measured_registry())
    async with PlanSolver(settings) as solver:
        first = await solver.solve(version, {"mean_active_b": 5})
        (process,) = children()
        with pytest.raises(InvalidRequest, match="the smallest feasible limit"):
            await solver.solve(version, {"mean_active_b": 0.1})
        assert await solver.solve(version, {"mean_active_b": 5}) == first
        assert children() == [process]
        other, _ = planned(settings, measured_registry(), deviations=0.0)
        await solver.solve(other, {})
        assert process not in children()
    assert children() == []


async def test_of_the_budgets_that_wait_the_newest_is_solved(settings: Settings) -> None:
    version, _ = planned(settings, measured_registry())
    async with PlanSolver(settings) as solver:
        asked = [asyncio.create_task(solver.solve(version, {"mean_active_b": limit})) for limit in (3, 4, 5)]
        await asyncio.wait(asked)
    reported = [one.exception() or one.result()["budget"] for one in asked]
    assert [str(one) for one in reported[:2]] == ["a newer budget has been requested"] * 2
    assert reported[2] == {"mean_active_b": 5.0}
