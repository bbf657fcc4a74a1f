"""Several worker processes show one sum, also after one of them dies."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gateway.observability import metric_workers
from gateway.observability.metric_workers import Siblings, share_metrics
from gateway.observability.metrics import MetricRegistry, exposition
from tests import forked
from tests.observability.pages import value
from tests.observability.worker import registry

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def long_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, a worker that can reply does so in time."""
    monkeypatch.setattr(metric_workers, "SIBLING_TIMEOUT_SECONDS", 20.0)


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="coe-") as path:  # pytest's own are too long for a socket's address
        yield Path(path)


@asynccontextmanager
async def process(folder: Path, count: int) -> AsyncIterator[asyncio.subprocess.Process]:
    command = forked.python("tests.observability.worker", str(folder), str(count))
    started = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert started.stdout is not None
        assert await started.stdout.readline() == b"ready\n"
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


async def shown(own: MetricRegistry, siblings: Siblings) -> tuple[float, float]:
    """The counter and the gauge on the page."""
    text = exposition([own.families(), *await siblings()])
    return value(text, "c_total"), value(text, "busy")


async def test_every_worker_shows_the_sum_at_once(folder: Path) -> None:
    one, two = registry(), registry()
    async with share_metrics(folder, one) as of_one, share_metrics(folder, two) as of_two:
        assert (one.worker, two.worker) == (0, 1)
        one.families()[0].add((), 2)
        two.families()[0].add((), 3)
        assert await shown(one, of_one) == (5, 2)
        assert await shown(two, of_two) == (5, 2)
        two.families()[0].add(())
        assert await shown(one, of_one) == (6, 2)


async def test_a_killed_worker_takes_its_gauges_along_and_leaves_its_counts_to_its_successor(folder: Path) -> None:
    own = registry()
    own.families()[0].add((), 1)
    async with share_metrics(folder, own) as siblings:
        async with process(folder, 10) as killed:
            assert await shown(own, siblings) == (11, 2)
            killed.send_signal(signal.SIGKILL)
            await killed.wait()
            assert await shown(own, siblings) == (11, 1)
        async with process(folder, 100):
            assert await shown(own, siblings) == (111, 2)
            assert {name for name in await asyncio.to_thread(os.listdir, folder) if "lock" in name} == {
                "0.lock",
                "1.lock",
            }


async def test_what_a_worker_has_shown_itself_outlives_it_although_no_sibling_asked_for_it(folder: Path) -> None:
    own = registry()
    own.families()[0].add((), 5)
    async with share_metrics(folder, own) as siblings:
        assert await shown(own, siblings) == (5, 1)
        successor = registry()
        successor.resume((folder / "0.json").read_bytes())  # as after SIGKILL
    assert value(exposition([successor.families()]), "c_total") == 5


async def test_a_frozen_worker_does_not_hold_up_the_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_workers, "SIBLING_TIMEOUT_SECONDS", 0.05)
    own = registry()
    own.families()[0].add(())
    async with share_metrics(folder, own) as siblings, process(folder, 10) as frozen:
        async with asyncio.timeout(60):
            while await shown(own, siblings) != (11, 2):  # it answers within the time while it is not frozen
                pass
            frozen.send_signal(signal.SIGSTOP)
            assert await shown(own, siblings) == (11, 1)
            frozen.send_signal(signal.SIGCONT)
            while await shown(own, siblings) != (11, 2):
                pass


async def test_a_worker_that_ends_leaves_all_it_counted(folder: Path) -> None:
    own = registry()
    own.families()[0].add(())
    async with share_metrics(folder, own) as siblings:
        async with share_metrics(folder, ended := registry()):
            ended.families()[0].add((), 7)
        assert await shown(own, siblings) == (8, 1)


async def test_a_snapshot_that_is_none_counts_for_nothing(folder: Path) -> None:
    own = registry()
    own.families()[0].add(())
    async with share_metrics(folder, own) as siblings:
        (folder / "1.lock").touch()
        (folder / "1.sock").touch()
        assert await shown(own, siblings) == (1, 1)
