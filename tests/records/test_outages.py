"""Warnings and metrics of a log, a spool or a queue that fails, and of its recovery."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from coe import outage
from coe.errors import StoreError
from tests.records.samples import WatchedLog, records, writer_to
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

GONE = StoreError("redis at nowhere: refused; check that it runs")
QUICK: dict[str, Any] = {"interval": 0.001, "first_retry": 0.001, "max_retry": 0.002}


@pytest.fixture(autouse=True)
def long_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second warning with the same effect is due during a test, however busy the machine is."""
    monkeypatch.setattr(outage, "WARNING_INTERVAL_SECONDS", 10_000.0)


def lines(caplog: pytest.LogCaptureFixture, *, store: str) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.getMessage().startswith(f"{store}: ")]


async def test_a_spool_that_fails_too_has_a_warning_of_its_own_and_both_recoveries_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "state"
    folder.write_text("a file where the folder should be")
    log = WatchedLog()
    log.fails = GONE
    with caplog.at_level(logging.WARNING, logger="coe.outage"):
        async with writer_to(log, spool=folder / "spool.db", capacity=50, **QUICK) as writer:
            for one in records(30):
                writer.put(one)
            await wait_until(lambda: writer.spool_error is not None)
            assert "state" in str(writer.last_error)
            [began] = lines(caplog, store="routing log: spool")
            assert str(folder / "spool.db") in began
            assert "check that the disk has room" in began
            assert "up to 50 entries wait in memory, no more are taken" in began
            assert lines(caplog, store="routing log")[0].startswith(f"routing log: {GONE}")
            folder.unlink()
            log.fails = None
            await log.holds(30)
            await wait_until(lambda: writer.spool_error is None)
            assert writer.last_error is None
            assert len(lines(caplog, store="routing log: spool")) == 2
    assert any("routing log: works again (" in line for line in lines(caplog, store="routing log"))
    assert "works again (" in lines(caplog, store="routing log: spool")[1]
    assert (writer.dropped, log.stored) == (0, records(30))


async def test_an_unusable_spool_is_no_failure_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "spool.db.lock").mkdir()
    log = WatchedLog()
    with caplog.at_level(logging.WARNING, logger="coe.outage"):
        async with writer_to(log, spool=tmp_path / "spool.db", **QUICK) as writer:
            await wait_until(lambda: writer.spool_error is not None)
            assert writer.last_error is None
            writer.put(records(1)[0])
            await log.holds(1)
    [line] = lines(caplog, store="routing log: spool")
    assert str(tmp_path / "spool.db") in line
    assert "check that the disk has room and that the file may be written; entries in it wait" in line
