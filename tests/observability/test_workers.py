"""Metrics of one process, and of several that show one sum, also after one of them dies."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gateway.observability import metric_workers
from gateway.observability.metric_workers import share_metrics
from gateway.observability.metrics import Metrics
from tests import forked
from tests.observability.pages import value
from tests.observability.worker import counted

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
async def process(own: Path, count: int) -> AsyncIterator[asyncio.subprocess.Process]:
    command = forked.python("tests.observability.worker", str(own), str(count))
    started = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert started.stdout is not None
        assert await started.stdout.readline() == b"ready\n"
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


async def shown(metrics: Metrics) -> tuple[float, float]:
    """The counter and the gauge on the page."""
    text = await metrics.page()
    return value(text, "coe_refused_total", outcome="x"), value(text, "busy")


async def test_every_worker_shows_sums_and_maxima_at_once(folder: Path) -> None:
    one, two = counted(2), counted(3)
    one.gauge("most", "M.", lambda: 5.0, largest=True)
    two.gauge("most", "M.", lambda: 7.0, largest=True)
    async with share_metrics(folder / "0", one), share_metrics(folder / "1", two):
        assert await shown(one) == await shown(two) == (5, 2)
        assert value(await one.page(), "most") == 7
        two.count("coe_refused_total", "x")
        assert await shown(one) == (6, 2)
        (folder / "2.sock").touch()  # no snapshot
        assert await shown(one) == (6, 2)


async def test_a_killed_worker_takes_its_gauges_along_and_leaves_its_counts_to_its_successor(folder: Path) -> None:
    own = counted(1)
    async with share_metrics(folder / "0", own):
        async with process(folder / "1", 10) as killed:
            assert await shown(own) == (11, 2)
            killed.send_signal(signal.SIGKILL)
            await killed.wait()
            assert await shown(own) == (11, 1)
        async with process(folder / "1", 100):
            assert await shown(own) == (111, 2)
        successor = Metrics()
        successor.resume((folder / "0.json").read_bytes())  # as after SIGKILL: what this worker has shown itself
    assert value(await successor.page(), "coe_refused_total", outcome="x") == 1


async def test_a_frozen_worker_does_not_hold_up_the_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_workers, "SIBLING_TIMEOUT_SECONDS", 0.05)
    own = counted(1)
    async with share_metrics(folder / "0", own), process(folder / "1", 10) as frozen:
        async with asyncio.timeout(60):
            while await shown(own) != (11, 2):  # it answers within the time while it is not frozen
                pass
            frozen.send_signal(signal.SIGSTOP)
            assert await shown(own) == (11, 1)
            frozen.send_signal(signal.SIGCONT)
            while await shown(own) != (11, 2):
                pass


async def test_a_worker_that_ends_leaves_all_it_counted(folder: Path) -> None:
    own = counted(1)
    async with share_metrics(folder / "0", own):
        async with share_metrics(folder / "1", counted(7)):
            pass
        assert await shown(own) == (8, 1)
