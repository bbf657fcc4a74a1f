"""Implicit feedback through the background writer and its spool."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from coe.errors import StoreError
from coe.records import LogWriter
from coe.records.codec import ENTRY
from coe.records.feedback import Feedback
from coe.records.spool import Spool
from tests.list_log import ListLog
from tests.records.samples import in_spool, record
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

AWAY = StoreError("redis at nowhere: refused; check that it runs")
QUICK: dict[str, Any] = {"interval": 0.001, "first_retry": 0.001, "max_retry": 0.002}


def event(number: int, *, tenant: str | None = None, key: str | None = None) -> Feedback:
    return Feedback(f"e{number}", f"request-{number:06d}", 1_700_000_000.0 + number, "score", 0.5, tenant, key)


def writer_of(log: ListLog, path: Path | None, counted: Counter[str] | None = None, **options: Any) -> LogWriter:
    kinds: Counter[str] = Counter() if counted is None else counted
    return LogWriter(log, log, spool=path, count=lambda kind: kinds.update([kind]), **QUICK | options)  # type: ignore[arg-type]


async def wait_for_events(log: ListLog, count: int) -> None:
    async with asyncio.timeout(60):
        while len(log.events) < count:
            await asyncio.sleep(0.001)


async def test_events_go_to_the_log_and_through_the_spool_while_it_is_away(tmp_path: Path) -> None:
    log, path, counted = ListLog([]), tmp_path / "spool.db", Counter[str]()
    log.fails = AWAY
    async with writer_of(log, path, counted) as writer:
        for number in range(50):
            writer.put(event(number))
        await wait_until(lambda: writer.spooled == 50)
        assert counted == {"score": 50}
        log.fails = None
        await wait_for_events(log, 50)
    assert sorted(one.event_id for one in log.events) == sorted(f"e{number}" for number in range(50))
    assert in_spool(path) == []


async def test_a_damaged_line_does_not_hold_up_the_others(tmp_path: Path) -> None:
    path, log = tmp_path / "spool.db", ListLog([])
    Spool(path).append([b'{"event":{}}', b"{", ENTRY.encode(event(2))])
    async with writer_of(log, path) as writer:
        await wait_for_events(log, 1)
    assert (log.events, writer.dropped) == ([event(2)], 2)


async def test_a_record_of_a_newer_gateway_waits_in_the_spool_and_new_entries_go_to_the_log(tmp_path: Path) -> None:
    path, log = tmp_path / "spool.db", ListLog([])
    newer = record(0, schema=2)
    Spool(path).append([ENTRY.encode(newer)])
    async with writer_of(log, path) as writer:
        writer.put(event(1))
        await wait_for_events(log, 1)
        await wait_until(lambda: writer.spool_error is not None)
        assert "upgrade" in str(writer.spool_error)
    assert (log.events, writer.dropped) == ([event(1)], 0)
    spool = Spool(path)
    assert spool.oldest(10) == [ENTRY.encode(newer)]
    spool.close()
