"""The ends of a time range in the SQLite log: the same rows as by a scan, found in few steps."""

from __future__ import annotations

import random
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from coe.records.database import LOG_TABLES, LOG_VERSION, Database, first_and_last
from coe.records.record import LogQuery
from coe.records.sqlite import SqliteLog, row_range
from coe.records.time_blocks import BLOCK_ROWS, first_since, last_until
from tests.records.samples import record

pytestmark = pytest.mark.anyio

INSERT = "INSERT INTO records (request_id, time, category, expert, outcome, record) VALUES (?, ?, '', '', '', '')"
FILL_BLOCKS = "INSERT INTO record_blocks SELECT seq / ?, min(time), max(time) FROM records GROUP BY 1"
FIRST_BLOCK = "SELECT min(block) FROM record_blocks"


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "log.db", tables=LOG_TABLES, version=LOG_VERSION)


@pytest.mark.parametrize("days", [None, 0.25])
async def test_the_ends_are_those_of_a_scan_although_times_do_not_rise_with_the_rows(
    database: Database, days: float | None
) -> None:
    """Requests overlap, a spool delivers hours later, a batch arrives twice, and old records are deleted."""
    start_time, shuffled = time.time() - 30_000, random.Random(7)
    times = [start_time + 10 * number + shuffled.uniform(-300, 0) for number in range(3_000)]
    late = [times.pop(shuffled.randrange(100, len(times))) for _ in range(200)]
    order = [*times[:1_500], *late[:100], *times[1_500:2_500], *late[100:], *times[2_500:]]
    appended = [record(number, time=one) for number, one in enumerate(order)]
    log, start = SqliteLog(database, retention=2_400, days=days), 0
    while start < len(appended):
        size, repeated = shuffled.randrange(1, 90), shuffled.choice((0, 0, 0, 10))
        await log.append(appended[max(0, start - repeated) : start + size])
        start += size

    def check(connection: sqlite3.Connection) -> int:
        edges = [
            start_time - 1_000,
            *shuffled.sample(order, 150),
            *shuffled.sample(late, 50),
            max(order),
            max(order) + 1,
        ]
        for edge in edges:
            since = connection.execute("SELECT min(seq) FROM records WHERE time >= ?", (edge,)).fetchone()[0]
            until = connection.execute("SELECT max(seq) FROM records WHERE time <= ?", (edge,)).fetchone()[0]
            assert (first_since(connection, edge), last_until(connection, edge)) == (since, until)
        (oldest, _), (block,) = first_and_last(connection, "records"), connection.execute(FIRST_BLOCK).fetchone()
        assert block >= oldest // BLOCK_ROWS - 1  # those of deleted rows are deleted too
        return oldest

    assert await database.read(check) > BLOCK_ROWS
    await log.aclose()


async def test_the_ends_of_a_time_range_are_found_without_a_scan(database: Database) -> None:
    log, count = SqliteLog(database, retention=100_000, days=None), 50_000

    def fill(connection: sqlite3.Connection) -> None:
        connection.executemany(INSERT, ((f"r{number}", float(number)) for number in range(1, count + 1)))
        connection.execute(FILL_BLOCKS, (BLOCK_ROWS,))

    await database.write(fill)
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 100

    def limits(connection: sqlite3.Connection) -> list[Any]:
        connection.set_progress_handler(step, 100)
        found = [
            row_range(connection, LogQuery(since=since, until=until), after=0, before=0)
            for since, until in ((1.0, count), (1.0, 2.0), (count / 2, count / 2 + 1), (count - 1.0, count))
        ]
        connection.set_progress_handler(None, 0)
        return found

    half = count // 2
    assert await database.read(limits) == [(1, count), (1, 2), (half, half + 1), (count - 1, count)]
    assert 0 < steps < count // 2  # a scan of an index takes several steps a row, for each of the eight ends
    await log.aclose()
