"""A queue on disk for entries that a log cannot accept yet: a SQLite file that survives crashes.

Several processes may share one file; each kind of entry has its own table. BackgroundWriter fills and empties it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from coe.errors import StoreError
from coe.records.codec import SCHEMA, decode, encode
from coe.records.database import Database, first_and_last
from coe.records.record import RoutingRecord

TABLES = tuple(
    f"CREATE TABLE {name} (seq INTEGER PRIMARY KEY AUTOINCREMENT, schema INTEGER NOT NULL, record BLOB NOT NULL)"
    for name in ("spool", "feedback")
)
VERSION = 1
"""Version of TABLES. Increase it when they change."""

MAX_ROWS = 1_000_000
"""Entries of one type that a spool keeps. About a gigabyte of records, 400 MB of feedback."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EntryType(Generic[T]):
    """A type of entry: its table, its stored form, and the newest schema that this code reads.

    A full table drops its oldest entries; with `refuses` it accepts no more instead.
    """

    table: str
    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T]
    schema_of: Callable[[T], int]
    newest: int
    refuses: bool = False


RECORDS: EntryType[RoutingRecord] = EntryType("spool", encode, decode, lambda record: record.schema, SCHEMA)


@dataclass(frozen=True, slots=True)
class SpooledEntries(Generic[T]):
    """Some spooled entries and their rows. Damaged rows are among `rows` but not among `entries`."""

    rows: tuple[int, ...]
    entries: tuple[T, ...]

    @property
    def damaged(self) -> int:
        return len(self.rows) - len(self.entries)


class Spool(Generic[T]):
    """First in, first out. A row is removed only after its entry is in the log. A crash between the two delivers the
    entry twice, and the log ignores the second by its id. All methods raise StoreError."""

    def __init__(self, path: Path, kind: EntryType[T], *, rows: int = MAX_ROWS) -> None:
        self.kind = kind
        self._database = Database(path, tables=TABLES, version=VERSION)
        self._rows = rows

    async def add(self, entries: Sequence[T]) -> int:
        """Stores the entries, on disk on return. Returns the number of oldest entries that were dropped for space."""
        kind = self.kind
        insert = f"INSERT INTO {kind.table} (schema, record) VALUES (?, ?)"  # noqa: S608 (constants)
        trim = f"DELETE FROM {kind.table} WHERE seq <= (SELECT max(seq) FROM {kind.table}) - ?"  # noqa: S608

        def work(connection: sqlite3.Connection) -> int:
            if kind.refuses and self._count(connection) + len(entries) > self._rows:
                raise StoreError(f"{self._database.path}: full: {self._rows} entries wait for the log")
            connection.executemany(insert, ((kind.schema_of(entry), kind.encode(entry)) for entry in entries))
            return 0 if kind.refuses else connection.execute(trim, (self._rows,)).rowcount

        return await self._database.write(work)

    async def oldest(self, limit: int) -> SpooledEntries[T]:
        """The first `limit` entries, without those of a newer schema, which a newer gateway left and will read."""
        table = self.kind.table
        oldest = f"SELECT seq, record FROM {table} WHERE schema <= ? ORDER BY seq LIMIT ?"  # noqa: S608 (constants)

        def work(connection: sqlite3.Connection) -> SpooledEntries[T]:
            rows = connection.execute(oldest, (self.kind.newest, limit)).fetchall()
            return SpooledEntries(tuple(seq for seq, _ in rows), tuple(self._readable(line for _, line in rows)))

        return await self._database.read(work)

    async def remove(self, rows: Sequence[int]) -> None:
        """Removes delivered rows; rows that another process has already removed are ignored."""
        remove = f"DELETE FROM {self.kind.table} WHERE seq = ?"  # noqa: S608 (constants)

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(remove, ((seq,) for seq in rows))

        await self._database.write(work)

    async def aclose(self) -> None:
        await self._database.aclose()

    def _count(self, connection: sqlite3.Connection) -> int:
        """The number of rows, estimated from their ids; counted only if the estimate allows a full table."""
        table = self.kind.table
        first, last = first_and_last(connection, table)
        if last - first < self._rows // 2:
            return last - first + 1
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608

    def _readable(self, lines: Iterable[bytes]) -> Iterator[T]:
        for line in lines:
            try:
                yield self.kind.decode(line)
            except StoreError:
                continue
