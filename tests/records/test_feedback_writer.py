"""Feedback through the background writer: on disk when `keep` returns, checked late where the log was away."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from coe.errors import StoreError
from coe.records import LogWriter, Pending
from coe.records import writer as spool_module
from coe.records.record import ENTRY, Feedback
from coe.records.writer import Spool
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


@pytest.mark.parametrize("hangs", [False, True])
async def test_while_the_log_is_slow_or_away_an_event_is_in_the_spool_when_keep_returns(
    tmp_path: Path, hangs: bool
) -> None:
    log, path = ListLog([]), tmp_path / "spool.db"
    log.fails = None if hangs else AWAY
    if hangs:
        log.gate.clear()
    async with writer_of(log, path, append_timeout=0.01, first_retry=60.0, max_retry=60.0) as writer:
        await asyncio.gather(*(writer.keep(Pending(event(number))) for number in range(50)))
        assert len(in_spool(path)) == writer.spooled == 50
        log.fails = AWAY
        log.gate.set()
    log.fails = None
    async with writer_of(log, path):
        await wait_for_events(log, 50)
    assert sorted(one.event_id for one in log.events) == sorted(f"e{number}" for number in range(50))
    assert in_spool(path) == []


async def test_an_unchecked_event_gets_the_tenant_of_its_request_or_is_rejected(tmp_path: Path) -> None:
    log = ListLog([record(1, tenant="a"), record(2, tenant="a"), record(3, tenant="a")])
    async with writer_of(log, tmp_path / "spool.db") as writer:
        for pending in (
            Pending(event(1, tenant="a"), checked=False),
            Pending(event(2, tenant="b"), checked=False),
            Pending(event(3, tenant="boss"), checked=False, is_admin=True),
            Pending(event(4, tenant="b"), checked=False),  # its record may still come; learning compares the tenants
        ):
            await writer.keep(pending)
    assert log.events == [event(1, tenant="a"), event(3, tenant="a"), event(4, tenant="b")]
    assert writer.rejected == 1


async def test_a_full_spool_refuses_new_events_and_keeps_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, path = ListLog([]), tmp_path / "spool.db"
    log.fails = AWAY
    async with writer_of(log, path) as writer:
        for number in range(3):
            await writer.keep(Pending(event(number)))
        monkeypatch.setattr(spool_module, "MAX_BYTES", 10)
        with pytest.raises(StoreError, match="full"):
            await writer.keep(Pending(event(3)))
        assert [one.event for one in in_spool(path)] == [event(number) for number in range(3)]
        log.fails = None
        await wait_for_events(log, 3)
        await writer.keep(Pending(event(4)))
    assert {one.event_id for one in log.events} >= {"e0", "e1", "e2", "e4"}


async def test_where_log_and_spool_fail_every_waiting_event_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    log = ListLog([])
    log.fails = AWAY
    async with writer_of(
        log, tmp_path / "file" / "spool.db", batch=2, first_retry=60.0, max_retry=60.0, close_timeout=0.1
    ) as writer:
        async with asyncio.timeout(60):
            found = await asyncio.gather(
                *(writer.keep(Pending(event(number))) for number in range(9)), return_exceptions=True
            )
            with pytest.raises(StoreError):
                await writer.keep(Pending(event(9)))
    assert [type(one) for one in found] == [StoreError] * 9


async def test_what_waits_when_the_context_ends_is_written(tmp_path: Path) -> None:
    log = ListLog([])
    async with writer_of(log, tmp_path / "spool.db", interval=60.0) as writer:
        waiting = asyncio.create_task(writer.keep(Pending(event(1))))
        await asyncio.sleep(0)
    await asyncio.wait_for(waiting, 60)
    assert log.events == [event(1)]


async def test_a_damaged_line_does_not_hold_up_the_others(tmp_path: Path) -> None:
    path, log = tmp_path / "spool.db", ListLog([])
    Spool(path).append([b'{"event":{}}', b"{", ENTRY.encode(Pending(event(2)))])
    async with writer_of(log, path) as writer:
        await wait_for_events(log, 1)
    assert (log.events, writer.dropped) == ([event(2)], 2)


async def test_a_record_of_a_newer_gateway_waits_in_the_spool_and_new_entries_go_to_the_log(tmp_path: Path) -> None:
    path, log = tmp_path / "spool.db", ListLog([])
    newer = record(0, schema=2)
    Spool(path).append([ENTRY.encode(newer)])
    async with writer_of(log, path) as writer:
        await writer.keep(Pending(event(1)))
        await wait_until(lambda: writer.spool_error is not None)
        assert "upgrade" in str(writer.spool_error)
    assert (log.events, writer.dropped) == ([event(1)], 0)
    spool = Spool(path)
    assert spool.oldest(10) == [ENTRY.encode(newer)]
    spool.close()
