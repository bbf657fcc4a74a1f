"""Records the routing log could not take yet, in a SQLite file that outlives crashes and is shared by processes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coe.errors import LogError
from coe.record import RoutingRecord
from coe.records.codec import SCHEMA, decode, encode
from coe.records.database import Database, Migration

MIGRATIONS: tuple[Migration, ...] = (
    ("CREATE TABLE spool (seq INTEGER PRIMARY KEY AUTOINCREMENT, schema INTEGER NOT NULL, record BLOB NOT NULL)",),
)

ROWS = 1_000_000
"""Records one spool keeps; beyond, the oldest are lost. About a gigabyte."""

INSERT = "INSERT INTO spool (schema, record) VALUES (?, ?)"
TRIM = "DELETE FROM spool WHERE seq <= (SELECT max(seq) FROM spool) - ?"
# A newer gateway beside this one may have left records that only it can read.
OLDEST = "SELECT seq, record FROM spool WHERE schema <= ? ORDER BY seq LIMIT ?"


@dataclass(frozen=True, slots=True)
class Waiting:
    """Some spooled records and their rows. `damaged` rows could not be read and are among `rows` but not `records`."""

    rows: tuple[int, ...]
    records: tuple[RoutingRecord, ...]

    @property
    def damaged(self) -> int:
        return len(self.rows) - len(self.records)


class Spool:
    """First in, first out. A row is removed only after its record is in the log; a crash between the two delivers it
    twice, which the log ignores by its request_id. All methods raise LogError."""

    def __init__(self, path: Path, *, rows: int = ROWS) -> None:
        self._database = Database(path, migrations=MIGRATIONS)
        self._rows = rows

    async def add(self, records: Sequence[RoutingRecord]) -> int:
        """Keep the records, on disk when this returns. Returns how many of the oldest had to make room."""

        def work(connection: sqlite3.Connection) -> int:
            connection.executemany(INSERT, ((record.schema, encode(record)) for record in records))
            return connection.execute(TRIM, (self._rows,)).rowcount

        return await self._database.write(work)

    async def oldest(self, limit: int) -> Waiting:
        """The first `limit` records in line."""

        def work(connection: sqlite3.Connection) -> Waiting:
            rows = connection.execute(OLDEST, (SCHEMA, limit)).fetchall()
            return Waiting(tuple(seq for seq, _ in rows), tuple(_readable(line for _, line in rows)))

        return await self._database.read(work)

    async def remove(self, rows: Sequence[int]) -> None:
        """Forget rows that are delivered; those another process removed meanwhile do not matter."""

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany("DELETE FROM spool WHERE seq = ?", ((seq,) for seq in rows))

        await self._database.write(work)

    async def aclose(self) -> None:
        await self._database.aclose()


def _readable(lines: Iterable[bytes]) -> Iterator[RoutingRecord]:
    for line in lines:
        try:
            yield decode(line)
        except LogError:
            continue
