"""Feedback in the SQLite file of the routing log.

One row per dedup key. A replacement is a new row, so that readers with a cursor get it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

from coe.records.database import LOG_TABLES, Database
from coe.records.feedback import Feedback, FeedbackPage, decode_in_order, decode_page, dedup_key, dedup_keys, encode
from coe.records.selection import page_size, parse_cursor, retention_start

# A replacement is a new row, so that it comes at the end again.
PUT = """INSERT OR REPLACE INTO feedback (dedup_key, event_id, time, event)
SELECT :dedup_key, :event_id, :time, :event WHERE NOT EXISTS (
    SELECT 1 FROM feedback
    WHERE dedup_key = :dedup_key AND (event_id = :event_id OR (time, event_id) > (:time, :event_id))
)"""
TRIM = "DELETE FROM feedback WHERE seq <= (SELECT seq FROM feedback ORDER BY seq DESC LIMIT 1 OFFSET ?)"
TRIM_EVERY = 1_000  # events: to count rows costs a walk through them
DELETE_OLD = "DELETE FROM feedback WHERE time < ?"
SELECT = "SELECT seq, event FROM feedback WHERE seq > ? ORDER BY seq LIMIT ?"


class SqliteFeedback:
    """A FeedbackLog whose cursor is the row number."""

    def __init__(self, path: Path, *, retention: int, days: float | None) -> None:
        self._database = Database(path, tables=LOG_TABLES)
        self._retention, self._days = retention, days

    async def append(self, events: Sequence[Feedback]) -> None:
        """Appends the events, all or none. Deletes events older than `days`, and at intervals those beyond the
        retention. Raises LogError."""

        def work(connection: sqlite3.Connection) -> None:
            before = _newest(connection)
            connection.executemany(PUT, map(_row, events))
            connection.execute(DELETE_OLD, (retention_start(self._days),))
            if _newest(connection) // TRIM_EVERY > before // TRIM_EVERY:
                connection.execute(TRIM, (self._retention,))

        if events:
            await self._database.write(work)

    async def read(self, *, after: str = "", limit: int = 1_000) -> FeedbackPage:
        """The next events after the cursor. Raises LogError."""
        start, size = parse_cursor(after, place=str(self._database.path)), page_size(limit)

        def work(connection: sqlite3.Connection) -> FeedbackPage:
            rows = connection.execute(SELECT, (start, size)).fetchall()
            return decode_page((event for _, event in rows), cursor=str(rows[-1][0]) if rows else after)

        return await self._database.read(work)

    async def for_request(self, request_id: str, *, keys: Iterable[str | None]) -> tuple[Feedback, ...]:
        """The events of the request from those API keys. Raises LogError."""
        wanted = dedup_keys(request_id, keys)

        def work(connection: sqlite3.Connection) -> tuple[Feedback, ...]:
            lines = (
                connection.execute("SELECT event FROM feedback WHERE dedup_key = ?", (one,)).fetchone()
                for one in wanted
            )
            return decode_in_order(line[0] for line in lines if line)

        return await self._database.read(work)

    async def aclose(self) -> None:
        await self._database.aclose()


def _newest(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT max(seq) FROM feedback").fetchone()[0] or 0)


def _row(event: Feedback) -> dict[str, bytes | str | float]:
    return {"dedup_key": dedup_key(event), "event_id": event.event_id, "time": event.time, "event": encode(event)}
