"""Records off the request path: batches, bounds, and what happens while the log or the spool fails."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from coe.errors import StoreError
from coe.records import open_log_and_feedback
from tests.records.samples import WatchedLog, everything, ids, in_spool, record, records, writer_to

pytestmark = pytest.mark.anyio

GONE = StoreError("redis at nowhere: refused; check that it runs")
QUICK: dict[str, Any] = {"interval": 0.001, "first_retry": 0.001, "max_retry": 0.002}


async def test_what_was_put_is_in_the_log_after_leaving(tmp_path: Path) -> None:
    log = open_log_and_feedback("sqlite:///log.db", base=tmp_path)[0]
    async with writer_to(log, spool=tmp_path / "spool.db") as writer:
        for one in records(1_234):
            writer.put(one)
        assert writer.backlog == 1_234
    assert await everything(log) == records(1_234)
    assert (writer.backlog, writer.dropped, writer.spooled, writer.last_error) == (0, 0, 0, None)
    await log.aclose()


async def test_a_full_queue_takes_no_more_and_counts_what_it_refuses() -> None:
    log = WatchedLog()
    writer = writer_to(log, spool=None, capacity=10, **QUICK)
    for one in records(25):
        writer.put(one)
    assert (writer.backlog, writer.dropped) == (10, 15)
    async with writer:
        pass
    assert log.stored == records(10)


@pytest.mark.parametrize("problem", [GONE, OSError("no route"), RuntimeError("a bug")])
async def test_while_the_log_fails_records_go_to_the_spool_and_from_there_to_the_log(
    problem: Exception, tmp_path: Path
) -> None:
    log = WatchedLog()
    log.fails = problem
    async with writer_to(log, spool=tmp_path / "spool.db", batch=40, **QUICK) as writer:
        for one in records(100):
            writer.put(one)
        await log.called(4)
        assert str(problem) in str(writer.last_error)
        log.fails = None
        await log.holds(100)
        for one in records(10, start=100):
            writer.put(one)
        await log.holds(110)
    assert sorted(ids(log.stored)) == ids(records(110))
    assert (writer.dropped, writer.last_error) == (0, None)
    assert writer.spooled >= 40
    assert in_spool(tmp_path / "spool.db") == []


async def test_writers_that_share_a_spool_and_a_log_deliver_every_record_once(tmp_path: Path) -> None:
    inner = open_log_and_feedback("sqlite:///log.db", base=tmp_path)[0]
    log = WatchedLog(inner)
    log.fails = GONE
    first, second = (writer_to(log, spool=tmp_path / "spool.db", batch=20, **QUICK) for _ in range(2))
    async with first, second:
        for number in range(400):
            (first if number % 2 else second).put(record(number))
        await log.called(4)
        log.fails = None
        await log.holds(400)
    assert sorted(ids(await everything(inner))) == ids(records(400))
    assert in_spool(tmp_path / "spool.db") == []
    assert (first.dropped, second.dropped) == (0, 0)
    await inner.aclose()


async def test_an_append_whose_answer_was_lost_is_repeated_and_kept_once(tmp_path: Path) -> None:
    inner = open_log_and_feedback("sqlite:///log.db", base=tmp_path)[0]

    class Forgetful(WatchedLog):
        async def append(self, records: Any) -> None:
            await super().append(records)
            if len(self.calls) == 1:
                raise GONE

    log = Forgetful(inner)
    async with writer_to(log, spool=tmp_path / "spool.db", **QUICK) as writer:
        for one in records(30):
            writer.put(one)
        await log.called(2)
    assert await everything(inner) == records(30)
    assert len(log.stored) == 60
    await inner.aclose()


async def test_a_log_that_hangs_holds_up_leaving_only_for_the_deadline_and_loses_nothing(tmp_path: Path) -> None:
    log = WatchedLog()
    log.gate.clear()
    async with asyncio.timeout(60):
        options = QUICK | {"append_timeout": 10.0, "close_timeout": 3.0}
        async with writer_to(log, spool=tmp_path / "spool.db", batch=40, **options) as writer:
            for one in records(100):
                writer.put(one)
    assert ids(in_spool(tmp_path / "spool.db")) == ids(records(100))
    assert (writer.dropped, writer.backlog) == (0, 0)


async def test_when_log_and_spool_fail_records_wait_and_what_is_left_at_the_end_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    log = WatchedLog()
    log.fails = GONE
    async with writer_to(log, spool=tmp_path / "file" / "spool.db", capacity=50, **QUICK) as writer:
        for one in records(30):
            writer.put(one)
        await log.called(3)
        assert (writer.backlog, writer.dropped, writer.spooled) == (30, 0, 0)
    assert (writer.backlog, writer.dropped, writer.spooled) == (0, 30, 0)
    assert "30 entries dropped" in caplog.text


async def test_a_full_disk_sends_records_to_the_spool_and_room_brings_them_home(tmp_path: Path) -> None:
    log = open_log_and_feedback("sqlite:///log.db", base=tmp_path)[0]
    await log.append(records(1))
    # The limit holds for this connection; the log opens a new one after the failure, as if there were room again.
    await log._database.read(lambda connection: connection.execute("PRAGMA max_page_count = 20"))  # type: ignore[attr-defined]
    watched = WatchedLog(log)
    async with writer_to(watched, spool=tmp_path / "spool.db", batch=300, **QUICK) as writer:
        for one in records(300):
            writer.put(one)
        await watched.called(1)
        assert "disk is full" in str(writer.last_error)
        await watched.holds(300)
    assert writer.spooled == 300
    assert await everything(log) == records(300)
    await log.aclose()
