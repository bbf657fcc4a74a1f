"""Job processes of the gateway: bounded, one at a time, and ended with the gateway."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from coe.errors import JobUnavailable, NotInstalled
from coe.settings import Settings
from gateway.main import open_services
from gateway.process import jobs as jobs_module
from gateway.process.jobs import Jobs, watch_experts
from tests.admin.samples import measured_registry, settings_in
from tests.gateway import words_server

pytestmark = pytest.mark.anyio


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


async def test_a_failure_has_the_message_of_the_command(settings: Settings) -> None:
    async with Jobs(settings) as jobs:
        with pytest.raises(JobUnavailable, match=r"`coe report` failed: .*no router is trained yet; run `coe train`"):
            await jobs.run("report", "--json", seconds=240, needs=())


async def test_what_takes_too_long_is_ended(settings: Settings) -> None:
    async with Jobs(settings) as jobs:
        with pytest.raises(JobUnavailable, match=r"`coe check` took more than 0\.01 s"):
            await jobs.run("check", "--json", seconds=0.01, needs=())
    assert children() == []


async def test_a_second_job_is_refused_and_the_gateways_end_ends_the_first(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "MAX_WAITING", 1)
    async with Jobs(settings) as jobs:
        running = asyncio.create_task(jobs.run("check", "--json", seconds=240, needs=()))
        while not children():
            await asyncio.sleep(0.01)
        with pytest.raises(JobUnavailable, match="wait for a job already"):
            await jobs.run("check", "--json", seconds=240, needs=())
    with pytest.raises(JobUnavailable):
        await running
    assert children() == []


async def test_a_missing_package_is_named_before_anything_is_started(settings: Settings) -> None:
    async with Jobs(settings) as jobs:
        with pytest.raises(NotInstalled, match=r"`coe report` needs no_such_package.*pip install '.*\[plan\]'"):
            await jobs.run("report", seconds=240, needs=("orjson", "no_such_package"))


class Looks(Jobs):
    """Jobs that fail with the next reason, and succeed where it is empty."""

    def __init__(self, settings: Settings, *reasons: str) -> None:
        super().__init__(settings)
        self.commands, self.reasons = list[tuple[str, ...]](), list(reasons)

    async def run(self, *arguments: str, **_: Any) -> None:
        self.commands.append(arguments)
        if not self.reasons:
            raise NotInstalled("no pyarrow")  # ends the watch
        if reason := self.reasons.pop(0):
            raise JobUnavailable(reason, retry_after=1.0)


async def test_the_watch_makes_reports_and_goes_on_after_failures_whose_reason_it_logs_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(jobs_module, "CHECK_SECONDS", 0.0)
    looks = Looks(settings, "a", "a", "b", "", "b")
    with caplog.at_level(logging.INFO, "gateway"):
        await watch_experts(looks, settings.artifacts / "traffic-report.json")
    assert looks.commands == [("report", "--publish", "--json")] * 6
    messages = [one.getMessage().removeprefix("no traffic report: ") for one in caplog.records]
    assert messages[:3] == ["a", "b", "b"]
    assert messages[3].endswith("`coe retrain --every` alone: no pyarrow")


@pytest.mark.parametrize("number", [0, 1])
async def test_the_first_worker_alone_watches_the_experts(settings: Settings, tmp_path: Path, number: int) -> None:
    (tmp_path / "workers").mkdir()
    async with open_services(settings, workers=tmp_path / "workers" / str(number), read=words_server.read):
        names = {task.get_name() for task in asyncio.all_tasks()}
    assert ("coe-alarms" in names) == (number == 0)
