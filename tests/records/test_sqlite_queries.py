"""Queries and deletions of the SQLite log, and the indexes that they use."""

from __future__ import annotations

import asyncio
import itertools
import math
import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from coe.records import open_log_and_feedback, sqlite
from coe.records.database import LOG_TABLES, LOG_VERSION, Database
from coe.records.record import LogQuery, RoutingLog, RoutingRecord
from coe.records.selection import matches
from coe.records.sqlite import SqliteLog
from tests.records.samples import everything, ids, record, records
from tests.records.test_feedback_logs import event

pytestmark = pytest.mark.anyio

T = TypeVar("T")


def mixed(count: int) -> list[RoutingRecord]:
    """Records with ordinary and rare values of each filter."""
    return [
        record(
            n,
            category="law" if n % 7 == 0 else "code",
            expert="lawyer" if n % 5 == 0 else "coder",
            outcome="expert_timeout" if n % 11 == 0 else "ok",
            reason="fallback" if n % 13 == 0 else "routed",
            tenant="acme" if n % 3 == 0 else None,
            session="chat" if n % 4 == 0 else None,
        )
        for n in range(count)
    ]


async def backwards(log: RoutingLog, query: LogQuery) -> AsyncIterator[RoutingRecord]:
    while True:
        page = await log.back(query)
        for one in page.records:
            yield one
        if not page.cursor:
            return
        query = replace(query, before=page.cursor)


class CountingDatabase(Database):
    """Counts the transactions that read."""

    reads = 0

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self.reads += 1
        return await super().read(work)


@pytest.fixture
def database(tmp_path: Path) -> CountingDatabase:
    return CountingDatabase(tmp_path / "log.db", tables=LOG_TABLES, version=LOG_VERSION)


@pytest.fixture
async def log(database: Database) -> AsyncIterator[RoutingLog]:
    log = SqliteLog(database, retention=10_000, days=None)
    yield log
    await log.aclose()


@pytest.mark.parametrize("scanned", [70, 200_000])
async def test_every_combination_of_filters_finds_the_same_rows_in_each_direction(
    log: RoutingLog, monkeypatch: pytest.MonkeyPatch, scanned: int
) -> None:
    monkeypatch.setattr(sqlite, "MAX_SCANNED", scanned)
    appended = mixed(300)
    await log.append(appended)
    choices = {
        "category": ("", "law", "code", "none"),
        "expert": ("", "lawyer"),
        "outcome": ("", "expert_timeout", "ok"),
        "reason": ("", "fallback", "routed"),
        "tenant": ("", "acme"),
        "session": ("", "chat"),
        "request_id": ("", appended[0].request_id[:-1]),
    }
    for values in itertools.product(*choices.values()):
        query = LogQuery(limit=1_000, **dict(zip(choices, values, strict=True)))
        wanted = [one for one in appended if matches(one, query)]
        assert list((await log.read(query)).records) == wanted
        assert list((await log.tail(query)).records) == wanted
        assert [one async for one in backwards(log, query)] == wanted[::-1]


async def test_a_backward_call_scans_a_bounded_number_of_rows_where_no_index_finds_them(
    log: RoutingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "MAX_SCANNED", 100)
    await log.append([record(0, category="law", outcome="expert_timeout"), *records(250, start=1)])
    query, found, calls = LogQuery(category="law"), list[RoutingRecord](), 0
    while True:
        page = await log.back(query)
        found, calls = [*found, *page.records], calls + 1
        if not page.cursor:
            break
        query = replace(query, before=page.cursor)
    assert (ids(found), calls) == (ids([record(0)]), 3)
    by_index = await log.back(LogQuery(outcome="expert_timeout"))
    assert (ids(by_index.records), by_index.cursor) == (ids([record(0)]), "")


@pytest.mark.parametrize(
    "query", [LogQuery(category="law"), LogQuery(tenant="acme", outcome="ok"), LogQuery(request_id="none")]
)
async def test_a_forward_scan_for_rare_values_takes_several_transactions(
    log: RoutingLog, database: CountingDatabase, monkeypatch: pytest.MonkeyPatch, query: LogQuery
) -> None:
    """Feedback is written by the same thread, and waits for a transaction at most."""
    monkeypatch.setattr(sqlite, "MAX_SCANNED", 100)
    await log.append(records(250))
    for call in (log.read, log.tail):
        database.reads = 0
        assert (await call(query)).cursor == "250"
        assert database.reads == 1 + 3  # the limits, and the parts


async def test_a_scan_in_parts_ends_with_the_rows_that_its_query_may_match(
    log: RoutingLog, database: CountingDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "MAX_SCANNED", 100)
    stored = [record(n, category="law" if n % 2 else "code") for n in range(1_000)]
    await log.append(stored)
    query = LogQuery(category="law", since=stored[500].time, until=stored[549].time)
    wanted = ids([one for one in stored[500:550] if one.category == "law"])
    for call in (log.read, log.tail):
        database.reads = 0
        page = await call(query)
        assert (ids(page.records), page.cursor, database.reads) == (wanted, "1000", 2)
    page = await log.back(query)
    assert (ids(page.records), page.cursor) == (wanted[::-1], "")
    few = await log.read(replace(query, since=0.0, until=math.inf, limit=75))
    assert (len(few.records), few.cursor) == (75, "150")


async def test_records_that_arrive_during_a_scan_follow_at_the_next_read(
    log: RoutingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "MAX_SCANNED", 100)
    await log.append(records(250))
    page, _ = await asyncio.gather(log.read(LogQuery(category="law")), log.append([record(250, category="law")]))
    following = await log.read(LogQuery(category="law", after=page.cursor))
    assert ids([*page.records, *following.records]) == ids([record(250)])


async def test_the_oldest_records_are_deleted_together_within_a_hundredth_of_the_retention(
    database: Database,
) -> None:
    log, kept = SqliteLog(database, retention=1_000, days=None), list[int]()
    for start in range(0, 1_200, 3):
        await log.append(records(3, start=start))
        kept.append(len(await everything(log)))
    await log.aclose()
    full = kept[400 - 66 :]
    assert all(1_000 <= count < 1_010 for count in full)
    assert len(set(full)) > 1  # not at every append


async def test_a_lowered_retention_takes_effect_at_the_first_append(tmp_path: Path) -> None:
    log, feedback = open_log_and_feedback("sqlite:///log.db", base=tmp_path)
    await log.append(records(3_000))
    await feedback.append([event(n) for n in range(3_000)])
    await log.aclose()
    log, feedback = open_log_and_feedback("sqlite:///log.db", base=tmp_path, retention=1_000)
    await log.append([record(3_000)])
    await feedback.append([event(3_000)])
    page = await feedback.read(limit=10_000)
    assert len(await everything(log)) == len(page.events) == 1_000
    await log.aclose()
