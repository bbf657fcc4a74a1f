"""Entries that a log could not take yet, in a SQLite file that outlives crashes and is shared by processes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from coe.errors import LogError
from coe.records.codec import SCHEMA, decode, encode
from coe.records.database import Database, Migration
from coe.records.record import RoutingRecord

MIGRATIONS: tuple[Migration, ...] = (
    ("CREATE TABLE spool (seq INTEGER PRIMARY KEY AUTOINCREMENT, schema INTEGER NOT NULL, record BLOB NOT NULL)",),
    ("CREATE TABLE feedback (seq INTEGER PRIMARY KEY AUTOINCREMENT, schema INTEGER NOT NULL, record BLOB NOT NULL)",),
)

ROWS = 1_000_000
"""Entries of one kind that a spool keeps. About a gigabyte of records, 400 MB of feedback."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """A kind of entry: its table, its stored form, and the newest schema that this code reads.

    A full table drops its oldest entries, or with `refuses` accepts no more.
    """

    table: str
    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T]
    schema_of: Callable[[T], int]
    newest: int
    refuses: bool = False


RECORDS: Kind[RoutingRecord] = Kind("spool", encode, decode, lambda record: record.schema, SCHEMA)


@dataclass(frozen=True, slots=True)
class Waiting(Generic[T]):
    """Some spooled entries and their rows. `damaged` rows could not be read and are among `rows` but not `entries`."""

    rows: tuple[int, ...]
    entries: tuple[T, ...]

    @property
    def damaged(self) -> int:
        return len(self.rows) - len(self.entries)


class Spool(Generic[T]):
    """First in, first out. A row is removed only after its entry is in the log; a crash between the two delivers it
    twice, which the log ignores by its id. All methods raise LogError."""

    def __init__(self, path: Path, kind: Kind[T], *, rows: int = ROWS) -> None:
        self.kind = kind
        self._database = Database(path, migrations=MIGRATIONS)
        self._rows = rows

    async def add(self, entries: Sequence[T]) -> int:
        """Keep the entries, on disk when this returns. Returns how many of the oldest had to make room."""
        kind = self.kind
        insert = f"INSERT INTO {kind.table} (schema, record) VALUES (?, ?)"  # noqa: S608 (our own words)
        trim = f"DELETE FROM {kind.table} WHERE seq <= (SELECT max(seq) FROM {kind.table}) - ?"  # noqa: S608

        def work(connection: sqlite3.Connection) -> int:
            if kind.refuses and self._count(connection) + len(entries) > self._rows:
                raise LogError(f"{self._database.path}: full, {self._rows} entries wait for the log in it")
            connection.executemany(insert, ((kind.schema_of(entry), kind.encode(entry)) for entry in entries))
            return 0 if kind.refuses else connection.execute(trim, (self._rows,)).rowcount

        return await self._database.write(work)

    async def oldest(self, limit: int) -> Waiting[T]:
        """The first `limit` entries in line, but for those that only a newer gateway beside this one can read."""
        table = self.kind.table
        oldest = f"SELECT seq, record FROM {table} WHERE schema <= ? ORDER BY seq LIMIT ?"  # noqa: S608 (our own words)

        def work(connection: sqlite3.Connection) -> Waiting[T]:
            rows = connection.execute(oldest, (self.kind.newest, limit)).fetchall()
            return Waiting(tuple(seq for seq, _ in rows), tuple(self._readable(line for _, line in rows)))

        return await self._database.read(work)

    async def remove(self, rows: Sequence[int]) -> None:
        """Forget rows that are delivered; those another process removed meanwhile do not matter."""
        remove = f"DELETE FROM {self.kind.table} WHERE seq = ?"  # noqa: S608 (our own words)

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(remove, ((seq,) for seq in rows))

        await self._database.write(work)

    async def aclose(self) -> None:
        await self._database.aclose()

    def _count(self, connection: sqlite3.Connection) -> int:
        """How many rows there are; they are counted only if their numbers leave it open that the table is full."""
        table = self.kind.table
        first, last = connection.execute(f"SELECT min(seq), max(seq) FROM {table}").fetchone()  # noqa: S608
        if first is None or last - first < self._rows // 2:
            return 0 if first is None else int(last - first + 1)
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608

    def _readable(self, lines: Iterable[bytes]) -> Iterator[T]:
        for line in lines:
            try:
                yield self.kind.decode(line)
            except LogError:
                continue
