"""Records that wait in a file for a log that is away."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from coe.errors import StoreError
from coe.records.record import RoutingRecord
from coe.records.spool import RECORDS, Spool
from tests.records.samples import ids, record, records

pytestmark = pytest.mark.anyio


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool[RoutingRecord]]:
    spool = Spool(tmp_path / "deep" / "spool.db", RECORDS, rows=100)
    yield spool
    await spool.aclose()


async def test_records_come_out_as_they_went_in_oldest_first(spool: Spool[RoutingRecord]) -> None:
    await spool.add(records(3))
    await spool.add([record(3, prompt="né 🦜", embedding=b"\0\xff")])
    waiting = await spool.oldest(10)
    assert waiting.entries == (*records(3), record(3, prompt="né 🦜", embedding=b"\0\xff"))
    assert ids((await spool.oldest(2)).entries) == ids(records(2))


async def test_looking_removes_nothing_and_removing_removes_only_what_is_named(spool: Spool[RoutingRecord]) -> None:
    await spool.add(records(5))
    first = await spool.oldest(2)
    await spool.remove(first.rows)
    await spool.remove(first.rows)
    assert ids((await spool.oldest(10)).entries) == ids(records(3, start=2))


async def test_another_spool_on_the_same_file_sees_the_same_records(
    spool: Spool[RoutingRecord], tmp_path: Path
) -> None:
    await spool.add(records(2))
    other = Spool(tmp_path / "deep" / "spool.db", RECORDS)
    await other.add(records(1, start=2))
    await other.aclose()
    assert ids((await spool.oldest(10)).entries) == ids(records(3))


async def test_a_full_spool_makes_room_by_the_oldest_and_says_how_many(spool: Spool[RoutingRecord]) -> None:
    assert await spool.add(records(100)) == 0
    assert await spool.add(records(30, start=100)) == 30
    assert ids((await spool.oldest(1_000)).entries) == ids(records(100, start=30))


async def test_what_a_newer_gateway_left_is_kept_for_it_and_holds_up_nobody(spool: Spool[RoutingRecord]) -> None:
    await spool.add([record(0, schema=2), record(1)])
    waiting = await spool.oldest(1)
    assert ids(waiting.entries) == [record(1).request_id]
    await spool.remove(waiting.rows)
    with sqlite3.connect(spool._database.path) as connection:
        assert connection.execute("SELECT schema FROM spool").fetchall() == [(2,)]
    connection.close()


async def test_a_damaged_row_is_counted_and_can_be_removed(spool: Spool[RoutingRecord]) -> None:
    await spool.add(records(2))
    with sqlite3.connect(spool._database.path) as connection:
        connection.execute("UPDATE spool SET record = 'x' WHERE seq = 1")
    connection.close()
    waiting = await spool.oldest(10)
    assert (waiting.rows, ids(waiting.entries), waiting.damaged) == ((1, 2), [record(1).request_id], 1)


async def test_a_spool_that_refuses_counts_its_rows_without_a_scan_until_half_its_limit(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.db", replace(RECORDS, refuses=True), rows=100)
    await spool.add(records(10))
    statements: list[str] = []

    def trace(connection: sqlite3.Connection) -> None:
        connection.set_trace_callback(statements.append)

    await spool._database.read(trace)
    await spool.add(records(10, start=10))

    def plans(connection: sqlite3.Connection) -> list[str]:
        connection.set_trace_callback(None)
        selects = [one for one in statements if one.startswith("SELECT")]
        return [str(row[3]) for one in selects for row in connection.execute(f"EXPLAIN QUERY PLAN {one}")]

    found = await spool._database.read(plans)
    assert sum(step.startswith("SEARCH") for step in found) == 2
    assert not [step for step in found if step.startswith("SCAN") and step != "SCAN CONSTANT ROW"]
    with pytest.raises(StoreError, match="full"):
        await spool.add(records(81, start=20))
    await spool.aclose()


async def test_a_closed_spool_refuses_clearly(spool: Spool[RoutingRecord]) -> None:
    await spool.aclose()
    with pytest.raises(StoreError, match="closed"):
        await spool.add(records(1))
