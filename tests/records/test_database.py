"""One SQLite file: its tables, its transactions, and concurrent processes."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from coe.errors import StoreError
from coe.records import sqlite as database_module
from coe.records.sqlite import Database
from tests.records.samples import ids, records

pytestmark = pytest.mark.anyio

TABLES = ("CREATE TABLE words (word TEXT)", "INSERT INTO words VALUES ('kept')")


async def select(database: Database) -> list[tuple[object, ...]]:
    return await database.read(lambda connection: connection.execute("SELECT * FROM words").fetchall())


@pytest.mark.parametrize("version", [0, 1, 3])
async def test_a_file_of_another_version_is_refused_and_left_alone(tmp_path: Path, version: int) -> None:
    with sqlite3.connect(tmp_path / "words.db") as connection:
        for statement in (*TABLES, f"PRAGMA user_version = {version}"):
            connection.execute(statement)
    connection.close()
    database = Database(tmp_path / "words.db", tables=TABLES, version=2)
    with pytest.raises(StoreError, match=r"words\.db.*another version of CoE.*move the file away"):
        await select(database)
    await database.aclose()
    with sqlite3.connect(tmp_path / "words.db") as connection:
        assert connection.execute("SELECT * FROM words").fetchall() == [("kept",)]
        assert connection.execute("PRAGMA user_version").fetchone() == (version,)
    connection.close()


async def test_a_failed_write_leaves_no_part_behind_and_the_next_one_works(tmp_path: Path) -> None:
    def half(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO words VALUES ('half')")
        connection.execute("INSERT INTO nowhere VALUES (1)")

    database = Database(tmp_path / "words.db", tables=TABLES, version=2)
    with pytest.raises(StoreError, match="no such table: nowhere"):
        await database.write(half)
    await database.write(lambda connection: connection.execute("INSERT INTO words VALUES ('whole')"))
    assert await select(database) == [("kept",), ("whole",)]
    await database.aclose()


@pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\0" + b"\xff" * 8_000])
async def test_the_error_of_a_damaged_file_says_to_restore_or_to_move_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "words.db"
    path.write_bytes(content)
    database = Database(path, tables=TABLES, version=2)
    with pytest.raises(StoreError, match=r"words\.db: file is not a database; .*restore a backup, or move it away"):
        await select(database)
    path.rename(tmp_path / "damaged.db")
    assert await select(database) == [("kept",)]
    await database.aclose()


async def test_the_error_of_a_locked_file_says_that_another_process_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.0)
    database = Database(tmp_path / "words.db", tables=TABLES, version=2)
    assert await select(database) == [("kept",)]
    with closing(sqlite3.connect(tmp_path / "words.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match=r"words\.db: database is locked; another process has held the file"):
            await database.write(lambda connection: connection.execute("INSERT INTO words VALUES ('more')"))
    await database.aclose()


APPEND = """
import asyncio, pathlib, sys
sys.path.insert(0, sys.argv[1])
from tests.records.samples import records
from coe.records import sqlite as database_module
from coe.records import open_log_and_feedback

async def main():
    log = open_log_and_feedback("sqlite:///log.db", base=pathlib.Path(sys.argv[2]))[0]
    for start in range(0, 300, 20):
        await log.append(records(20, start=int(sys.argv[3]) + start))
    await log.aclose()

asyncio.run(main())
"""


def test_processes_that_create_and_fill_one_log_together_lose_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", APPEND, str(Path(__file__).parents[2]), str(tmp_path)]
    writers = [subprocess.Popen([*command, str(start)]) for start in (0, 300, 600, 600)]
    assert [writer.wait(timeout=240) for writer in writers] == [0, 0, 0, 0]
    with sqlite3.connect(tmp_path / "log.db") as connection:
        found = [key for (key,) in connection.execute("SELECT request_id FROM records ORDER BY request_id")]
    connection.close()
    assert found == ids(records(900))
