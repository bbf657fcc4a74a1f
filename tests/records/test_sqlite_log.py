"""What only the SQLite log does: files of before are brought forward."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from coe.records import open_log
from coe.records.codec import encode
from coe.records.database import MIGRATIONS
from coe.records.record import LogQuery
from tests.records.samples import ids, record

pytestmark = pytest.mark.anyio

BEFORE = 3
"""The version without columns for session, tenant and reason."""


async def test_records_of_a_file_of_before_are_found_by_what_has_a_column_now(tmp_path: Path) -> None:
    old = [record(0, session="s", tenant="retail"), record(1, reason="fallback")]
    connection = sqlite3.connect(tmp_path / "log.db")
    for statement in (one for step in MIGRATIONS[:BEFORE] for one in step):
        connection.execute(statement)
    insert = (
        "INSERT INTO records (request_id, time, category, expert, outcome, record) VALUES (?, 1, 'c', 'e', 'ok', ?)"
    )
    connection.executemany(insert, [(one.request_id, encode(one)) for one in old] + [("damaged", b"{")])
    connection.execute(f"PRAGMA user_version = {BEFORE}")
    connection.commit()
    connection.close()
    log = open_log("sqlite:///log.db", base=tmp_path)
    try:
        for query, found in (
            (LogQuery(session="s"), old[0]),
            (LogQuery(tenant="retail"), old[0]),
            (LogQuery(reason="fallback"), old[1]),
        ):
            assert ids((await log.back(query)).records) == [found.request_id]
        assert (await log.tail(LogQuery())).damaged == 1
    finally:
        await log.aclose()
