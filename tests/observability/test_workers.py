"""Metrics of several processes that show one sum, also after one of them dies."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.observability import metrics
from gateway.observability.metrics import Metrics, share_metrics
from tests import forked
from tests.observability.pages import value
from tests.observability.worker import counted

pytestmark = pytest.mark.anyio


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


async def test_every_worker_shows_sums_and_maxima_and_what_another_one_has_shown(tmp_path: Path) -> None:
    one, two = counted(2), counted(3)
    one.gauge("most", "M.", lambda: 5.0, largest=True)
    two.gauge("most", "M.", lambda: 7.0, largest=True)
    async with share_metrics(tmp_path / "0", one), share_metrics(tmp_path / "1", two):
        await asyncio.sleep(0)
        assert await shown(one) == await shown(two) == (5, 2)
        assert value(await one.page(), "most") == 7
        two.count("coe_refused_total", "x")
        assert await shown(two) == await shown(one) == (6, 2)


async def test_a_killed_worker_takes_its_gauges_along_and_leaves_its_counts_to_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = counted(1)
    async with share_metrics(tmp_path / "0", own):
        async with process(tmp_path / "1", 10) as killed:
            assert await shown(own) == (11, 2)
            killed.send_signal(signal.SIGKILL)
            await killed.wait()
            with monkeypatch.context() as patch:
                patch.setattr(metrics, "FRESH_SECONDS", 0.0)
                assert await shown(own) == (11, 1)
        async with process(tmp_path / "1", 100):
            assert await shown(own) == (111, 2)
        successor = Metrics()
        successor.resume(tmp_path / "0")  # as after SIGKILL: what this worker has shown itself
    assert value(await successor.page(), "coe_refused_total", outcome="x") == 1


async def test_a_worker_that_ends_leaves_all_it_counted(tmp_path: Path) -> None:
    own, other = counted(1), counted(6)
    async with share_metrics(tmp_path / "0", own):
        async with share_metrics(tmp_path / "1", other):
            await asyncio.sleep(0)
            other.count("coe_refused_total", "x")
        assert (await shown(own))[0] == 8
