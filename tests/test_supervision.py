"""Background tasks that end unexpectedly: logged, counted, restarted."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

import gateway.process.reload
import gateway.process.server_polls
from coe import supervision
from coe.artifacts.artifact_sync import ArtifactSync, sync_artifacts
from coe.experts.http.client import Client
from coe.fleet.residency.client import ResidencyClient, connected_client
from coe.records import LogWriter
from coe.settings import Settings
from coe.supervision import next_pause, supervised
from gateway.access.limits import Limiter
from gateway.observability.logs import TextFormatter
from gateway.observability.metrics import Metrics

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "next_pause", lambda *_, **__: 0.0)


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


async def test_a_cancelled_task_is_not_restarted() -> None:
    work = Work()
    task = supervised(work, "demo", task_failed=pytest.fail)
    await work.waits.wait()
    work.waits.clear()
    await cancelled(task)
    await asyncio.sleep(0)
    assert not work.waits.is_set(), "the work was started again"


def test_pauses_double_to_a_bound_and_begin_anew_after_a_healthy_time() -> None:
    pauses = [0.0]
    for _ in range(8):
        pauses.append(next_pause(pauses[-1], ran=0.0))
    assert pauses[1:] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert next_pause(60.0, ran=60.0) == 1


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


def turns(patch: pytest.MonkeyPatch, work: Work, failed: Failed, folder: Path) -> Opened:
    patch.setattr(ResidencyClient, "run", work)
    return connected_client(folder / "socket", task_failed=failed)


def expert_watch(patch: pytest.MonkeyPatch, work: Work, failed: Failed, folder: Path) -> Opened:
    patch.setattr(gateway.process.server_polls, "read_queues", work)
    return gateway.process.server_polls.reading_queues(list, session=Client(), task_failed=failed)


def reload(patch: pytest.MonkeyPatch, work: Work, failed: Failed, folder: Path) -> Opened:
    patch.setattr(gateway.process.reload.Reload, "_run", work)
    found = object.__new__(gateway.process.reload.Reload)
    return found.watching(since=(), task_failed=failed)


def artifact_sync(patch: pytest.MonkeyPatch, work: Work, failed: Failed, folder: Path) -> Opened:
    patch.setattr(ArtifactSync, "run", work)
    metrics = Metrics()
    patch.setattr(metrics, "task_failed", failed)
    return sync_artifacts(Settings.read({"COE_HOME": str(folder)}), URL, task_failed=metrics.task_failed)


OPENED = [records, limits, turns, expert_watch, reload, artifact_sync]


@pytest.mark.parametrize("opened", OPENED)
async def test_every_background_task_of_a_gateway_is_supervised(
    opened: Callable[[pytest.MonkeyPatch, Work, Failed, Path], Opened], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failures: list[str] = []
    work = Work(ValueError("once"))
    async with opened(monkeypatch, work, failures.append, tmp_path):
        await work.waits.wait()
    assert len(failures) == 1
