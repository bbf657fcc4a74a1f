"""Warnings and metrics of a log, a spool or a queue that fails, and of its recovery."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from coe import outage
from coe.errors import StoreError
from coe.records.codec import ENTRY
from coe.records.spool import Spool
from tests.records.samples import WatchedLog, record, records, writer_to
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


async def test_a_log_that_fails_and_works_in_turns_is_not_logged_each_time(caplog: pytest.LogCaptureFixture) -> None:
    log = WatchedLog()
    with caplog.at_level(logging.WARNING, logger="coe.outage"):
        async with writer_to(log, spool=None, **QUICK) as writer:
            for number in range(5):
                log.fails = GONE
                writer.put(records(1, start=number)[0])
                await wait_until(lambda: writer.last_error is not None)
                log.fails = None
                await log.holds(number + 1)
                await wait_until(lambda: writer.last_error is None)
    assert len(lines(caplog, store="routing log")) == 2


async def test_entries_that_a_slow_log_costs_are_logged_although_nothing_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = WatchedLog()
    log.gate.clear()
    with caplog.at_level(logging.WARNING, logger="coe.outage"):
        async with writer_to(log, spool=None, capacity=10, batch=5, **QUICK) as writer:
            for one in records(5):
                writer.put(one)
            await log.entered.wait()
            for one in records(30, start=5):
                writer.put(one)
            log.gate.set()
            await log.called(2)
    [line] = lines(caplog, store="routing log")
    assert "the queue of 10 entries is full or closed, so new ones are dropped (0 entries spooled, 1 dropped" in line
    assert (writer.dropped, writer.last_error) == (25, None)


async def test_an_entry_that_cannot_be_stored_is_logged_beside_the_failure_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = WatchedLog()
    log.fails = GONE
    with caplog.at_level(logging.WARNING, logger="coe.outage"):
        async with writer_to(log, spool=tmp_path / "spool.db", **QUICK) as writer:
            writer.put(record(1, prompt="\ud800"))
            await wait_until(lambda: writer.dropped == 1)
    began, dropped = lines(caplog, store="routing log")[:2]
    assert began.startswith(f"routing log: {GONE} (")
    assert "; the entry is dropped (" in dropped


async def test_entries_that_a_silent_log_costs_at_the_end_are_logged_with_the_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = WatchedLog()
    log.gate.clear()
    with caplog.at_level(logging.WARNING, logger="coe.outage"):
        async with writer_to(log, spool=None, close_timeout=0.01, **QUICK) as writer:
            writer.put(records(1)[0])
            await log.entered.wait()
    [line] = lines(caplog, store="routing log")
    assert line.endswith(
        "1 entries dropped so far, some at the end: the log and the spool did not answer within 0.02 s"
    )


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


async def test_a_spool_that_fails_from_the_start_on_is_logged_again_once_entries_need_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "spool.db.lock").mkdir()
    log = WatchedLog()
    with caplog.at_level(logging.WARNING, logger="coe.outage"):
        async with writer_to(log, spool=tmp_path / "spool.db", **QUICK) as writer:
            await wait_until(lambda: writer.spool_error is not None)
            log.fails = GONE
            writer.put(records(1)[0])
            await wait_until(lambda: len(lines(caplog, store="routing log: spool")) == 2)
            log.fails = None
            await log.holds(1)
    assert "; entries in it wait, new ones go to the log (" in lines(caplog, store="routing log: spool")[0]
    assert "; up to 10000 entries wait in memory, no more are taken" in lines(caplog, store="routing log: spool")[1]


async def test_damaged_entries_of_the_spool_are_logged_as_they_are_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Spool(tmp_path / "spool.db").append([b"x", ENTRY.encode(record(1))])
    log = WatchedLog()
    with caplog.at_level(logging.WARNING, logger="coe.outage"):
        async with writer_to(log, spool=tmp_path / "spool.db", **QUICK) as writer:
            await log.holds(1)
            await wait_until(lambda: writer.dropped == 1)
    [line] = lines(caplog, store="routing log: spool")
    assert "1 damaged entries are removed (0 entries spooled, 1 dropped" in line
