"""How the SQLite log finds and deletes rows: by indexes that an ordinary record costs little."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from coe.records import sqlite
from coe.records.database import LOG_TABLES, Database
from coe.records.record import LogQuery, RoutingLog, RoutingRecord
from coe.records.selection import matches
from coe.records.sqlite import SqliteLog
from tests.records.samples import everything, ids, record, records

pytestmark = pytest.mark.anyio


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


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[RoutingLog]:
    log = SqliteLog(Database(tmp_path / "log.db", tables=LOG_TABLES), retention=10_000, days=None)
    yield log
    await log.aclose()


async def test_every_combination_of_filters_finds_the_same_rows_in_each_direction(
    log: RoutingLog,
) -> None:
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
        assert list((await log.back(query)).records) == wanted[::-1]


async def test_a_backward_call_scans_a_bounded_number_of_rows_where_no_index_finds_them(
    log: RoutingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "MAX_SCANNED_BACK", 100)
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


async def test_the_oldest_records_are_deleted_together_within_a_hundredth_of_the_retention(tmp_path: Path) -> None:
    log, kept = SqliteLog(Database(tmp_path / "log.db", tables=LOG_TABLES), retention=1_000, days=None), list[int]()
    for start in range(0, 1_200, 3):
        await log.append(records(3, start=start))
        kept.append(len(await everything(log)))
    await log.aclose()
    full = kept[400 - 66 :]
    assert all(1_000 <= count < 1_010 for count in full)
    assert len(set(full)) > 1  # not at every append
