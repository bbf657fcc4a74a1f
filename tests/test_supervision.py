"""Background tasks that end unexpectedly: logged, counted, restarted."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

import coe.artifacts.artifact_sync
import coe.experts.queues
import coe.records.writer
import gateway.process.reload
from coe import supervision
from coe.artifacts.artifact_sync import ArtifactSync, sync_artifacts
from coe.experts.http.client import Client
from coe.fleet.residency.client import ResidencyClient, connected_client
from coe.records import LogWriter
from coe.settings import Settings
from coe.supervision import log_failure, next_pause, supervised
from gateway.access import Limiter, open_affinity, open_limiter
from gateway.observability.logs import TextFormatter
from gateway.observability.metrics import Metrics, exposition
from gateway.server import Server
from gateway.shared_cache import SharedCache
from tests.gateway.raw_http import served

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "FIRST_PAUSE_SECONDS", 0.0)


class Work:
    """Fails a number of times, then waits for ever."""

    def __init__(self, *failures: BaseException | None) -> None:
        self.failures = list(failures)
        self.waits = asyncio.Event()

    async def __call__(self, *_: Any, **__: Any) -> None:
        if self.failures:
            failure = self.failures.pop(0)
            if failure is None:
                return
            raise failure
        self.waits.set()
        await asyncio.Event().wait()


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def formatted(record: logging.LogRecord) -> str:
    record.exc_text = None  # that of another formatter
    return TextFormatter().format(record)


async def test_a_task_that_fails_is_logged_counted_and_restarted(caplog: pytest.LogCaptureFixture) -> None:
    failures: Counter[str] = Counter()
    work = Work(ValueError("a prompt"), None, asyncio.CancelledError())
    task = supervised(work, "demo", task_failed=lambda name: failures.update([name]))
    await work.waits.wait()
    assert failures == {"demo": 3}
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 3
    line = formatted(caplog.records[0])
    assert "background task 'demo' ended unexpectedly; it restarts in" in line
    assert "builtins.ValueError" in line
    assert "a prompt" not in line
    await cancelled(task)


async def test_a_cause_is_bounded_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def deep(levels: int = 200) -> None:
        if levels:
            await deep(levels - 1)
        raise OSError("x" * 10**6)

    task = supervised(deep, "demo")
    while not caplog.records:
        await asyncio.sleep(0)
    await cancelled(task)
    assert len(formatted(caplog.records[0])) < 20_000


async def test_a_task_that_may_return_ends_then() -> None:
    work = Work(None)
    await supervised(work, "demo", may_return=True)
    assert not work.failures
    assert not work.waits.is_set(), "the work was started again"


async def test_a_task_that_runs_once_is_logged_where_it_fails(caplog: pytest.LogCaptureFixture) -> None:
    async def run(*, fails: bool) -> None:
        if fails:
            raise OSError("the disk is full")

    for fails in (False, True):
        task = asyncio.create_task(run(fails=fails), name="once")
        task.add_done_callback(log_failure)
        await asyncio.wait({task})
        await asyncio.sleep(0)
    (record,) = caplog.records
    assert "background task 'once' failed" in formatted(record)
    assert "the disk is full" in formatted(record)


async def test_a_cancelled_task_is_not_restarted() -> None:
    work = Work()
    task = supervised(work, "demo", task_failed=pytest.fail)
    await work.waits.wait()
    work.waits.clear()
    await cancelled(task)
    await asyncio.sleep(0)
    assert not work.waits.is_set(), "the work was started again"


def test_pauses_double_to_a_bound_and_begin_anew_after_a_healthy_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "FIRST_PAUSE_SECONDS", 1.0)
    pauses = [0.0]
    for _ in range(8):
        pauses.append(next_pause(pauses[-1], ran=0.0))
    assert pauses[1:] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert next_pause(60.0, ran=60.0) == 1


async def test_failures_are_a_metric() -> None:
    metrics = Metrics()
    work = Work(ValueError())
    task = supervised(work, "demo", task_failed=metrics.task_failed)
    await work.waits.wait()
    assert 'coe_background_task_failures_total{task="demo"} 1.0' in exposition(metrics.own_families()).decode()
    await cancelled(task)


# ----------------------------------------------------------------------- every task that serves as long as a process

Failed = Callable[[str], None]
Opened = AbstractAsyncContextManager[Any]
URL = "redis://127.0.0.1:1/0"


def records(patch: pytest.MonkeyPatch, work: Work, failed: Failed, folder: Path) -> Opened:
    patch.setattr(LogWriter, "_run", work)
    nothing: Any = None
    return LogWriter(nothing, nothing, spool=None, close_timeout=0.01, task_failed=failed)


def limits(patch: pytest.MonkeyPatch, work: Work, failed: Failed, folder: Path) -> Opened:
    patch.setattr(Limiter, "_run", work)
    return Limiter(task_failed=failed)


def conversations(patch: pytest.MonkeyPatch, work: Work, failed: Failed, folder: Path) -> Opened:
    patch.setattr(SharedCache, "_run", work)
    return open_affinity(URL, task_failed=failed)


def turns(patch: pytest.MonkeyPatch, work: Work, failed: Failed, folder: Path) -> Opened:
    patch.setattr(ResidencyClient, "run", work)
    return connected_client(folder / "socket", task_failed=failed)


def expert_watch(patch: pytest.MonkeyPatch, work: Work, failed: Failed, folder: Path) -> Opened:
    patch.setattr(coe.experts.queues, "read_queues", work)
    return coe.experts.queues.reading_queues(list, session=Client(), task_failed=failed)


def connections(patch: pytest.MonkeyPatch, work: Work, failed: Failed, folder: Path) -> Opened:
    patch.setattr(Server, "_accept", work)
    return served(Starlette(), task_failed=failed)


def reload(patch: pytest.MonkeyPatch, work: Work, failed: Failed, folder: Path) -> Opened:
    patch.setattr(gateway.process.reload.Reload, "_run", work)
    found = object.__new__(gateway.process.reload.Reload)
    found._warming = None
    return found.watching(since=(), task_failed=failed)


def artifact_sync(patch: pytest.MonkeyPatch, work: Work, failed: Failed, folder: Path) -> Opened:
    patch.setattr(ArtifactSync, "run", work)
    metrics = Metrics()
    patch.setattr(metrics, "task_failed", failed)
    return sync_artifacts(Settings.read({"COE_HOME": str(folder)}), URL, task_failed=metrics.task_failed)


OPENED = [records, limits, conversations, turns, expert_watch, connections, reload, artifact_sync]


@pytest.mark.parametrize("opened", OPENED)
async def test_every_background_task_of_a_gateway_is_supervised(
    opened: Callable[[pytest.MonkeyPatch, Work, Failed, Path], Opened], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failures: list[str] = []
    work = Work(ValueError("once"))
    async with opened(monkeypatch, work, failures.append, tmp_path):
        await work.waits.wait()
    assert len(failures) == 1


async def test_counts_of_keys_are_written_on_after_their_task_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failures: list[str] = []
    went_on, write = asyncio.Event(), Limiter._run

    async def once(limiter: Limiter) -> None:
        if not failures:
            raise ValueError("once")
        went_on.set()
        await write(limiter)

    monkeypatch.setattr(Limiter, "_run", once)
    async with open_limiter("file", home=tmp_path, task_failed=failures.append):
        await went_on.wait()
    assert failures == ["limits"]


async def test_a_follower_survives_whatever_is_shared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: object) -> None:
        raise UnicodeDecodeError("ascii", b"\xff" * 10_000, 0, 1, "no")

    monkeypatch.setattr(coe.artifacts.artifact_sync, "mirror", fails)
    follower = ArtifactSync(Settings.read({"COE_HOME": str(tmp_path)}), None)  # type: ignore[arg-type]
    follower.sync()
    assert follower.outage.active
    assert len(caplog.records[0].getMessage()) < 1000
