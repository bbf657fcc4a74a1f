"""Feedback in the SQLite file of the routing log."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

from coe.records.database import MIGRATIONS, Database
from coe.records.feedback import Feedback, FeedbackPage, encode, in_order, page, slot, slots
from coe.records.selection import oldest_kept, page_size, position

# A replacement is a new row, so that it comes at the end again.
PUT = """INSERT OR REPLACE INTO feedback (slot, event_id, time, event)
SELECT :slot, :event_id, :time, :event WHERE NOT EXISTS (
    SELECT 1 FROM feedback
    WHERE slot = :slot AND (event_id = :event_id OR (time, event_id) > (:time, :event_id))
)"""
TRIM = "DELETE FROM feedback WHERE seq <= (SELECT seq FROM feedback ORDER BY seq DESC LIMIT 1 OFFSET ?)"
TRIM_EVERY = 1_000  # events: to count rows costs a walk through them
FORGET = "DELETE FROM feedback WHERE time < ?"
SELECT = "SELECT seq, event FROM feedback WHERE seq > ? ORDER BY seq LIMIT ?"


class SqliteFeedback:
    """A FeedbackLog whose cursor is the row number."""

    def __init__(self, path: Path, *, retention: int, days: float | None) -> None:
        self._database = Database(path, migrations=MIGRATIONS)
        self._retention, self._days = retention, days

    async def append(self, events: Sequence[Feedback]) -> None:
        """Add the events, all or none; drop those beyond `days`, and now and then those beyond the retention. Raises
        LogError."""

        def work(connection: sqlite3.Connection) -> None:
            before = _newest(connection)
            connection.executemany(PUT, map(_row, events))
            connection.execute(FORGET, (oldest_kept(self._days),))
            if _newest(connection) // TRIM_EVERY > before // TRIM_EVERY:
                connection.execute(TRIM, (self._retention,))

        if events:
            await self._database.write(work)

    async def read(self, *, after: str = "", limit: int = 1_000) -> FeedbackPage:
        """The next events after the cursor. Raises LogError."""
        start, size = position(after, place=str(self._database.path)), page_size(limit)

        def work(connection: sqlite3.Connection) -> FeedbackPage:
            rows = connection.execute(SELECT, (start, size)).fetchall()
            return page((event for _, event in rows), cursor=str(rows[-1][0]) if rows else after)

        return await self._database.read(work)

    async def about(self, request_id: str, *, keys: Iterable[str | None]) -> tuple[Feedback, ...]:
        """What those keys said of the request. Raises LogError."""
        wanted = slots(request_id, keys)

        def work(connection: sqlite3.Connection) -> tuple[Feedback, ...]:
            lines = (
                connection.execute("SELECT event FROM feedback WHERE slot = ?", (one,)).fetchone() for one in wanted
            )
            return in_order(line[0] for line in lines if line)

        return await self._database.read(work)

    async def aclose(self) -> None:
        await self._database.aclose()


def _newest(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT max(seq) FROM feedback").fetchone()[0] or 0)


def _row(event: Feedback) -> dict[str, bytes | str | float]:
    return {"slot": slot(event), "event_id": event.event_id, "time": event.time, "event": encode(event)}
