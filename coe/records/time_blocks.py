"""The earliest and latest time of each block of rows in the SQLite routing log: a block range index.

It finds the ends of a time range without a scan. An index of times cannot: its entries are not in the order of the
rows, so the smallest row number since a time may be in any of them. Times rise with the row number except where
requests took long or records waited in a spool, so few blocks overlap.

The times of a block may span more than its rows, which costs a lookup in it: rows may be deleted, and a batch that
spans two blocks extends both.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

BLOCK_ROWS = 500
"""Rows that one lookup scans at most in a block. A million rows have 2,000 blocks."""
TABLE = "CREATE TABLE record_blocks (block INTEGER PRIMARY KEY, earliest REAL NOT NULL, latest REAL NOT NULL)"

# CROSS JOIN keeps the order of the tables, so the rows come in the wanted order without sorting.
LAST_OF_BLOCK = f"block * {BLOCK_ROWS} + {BLOCK_ROWS - 1}"
IN_BLOCK = f"record_blocks CROSS JOIN records NOT INDEXED ON seq BETWEEN block * {BLOCK_ROWS} AND {LAST_OF_BLOCK}"
FIRST_SINCE = f"""SELECT seq FROM {IN_BLOCK}
WHERE latest >= ?1 AND time >= ?1 ORDER BY block, seq LIMIT 1"""  # noqa: S608 (constants)
LAST_UNTIL = f"""SELECT seq FROM {IN_BLOCK}
WHERE earliest <= ?1 AND time <= ?1 ORDER BY block DESC, seq DESC LIMIT 1"""  # noqa: S608 (constants)
EXTEND = """INSERT INTO record_blocks VALUES (?, ?, ?) ON CONFLICT (block) DO UPDATE
SET earliest = min(earliest, excluded.earliest), latest = max(latest, excluded.latest)"""
TRIM = f"DELETE FROM record_blocks WHERE block < (SELECT min(seq) FROM records) / {BLOCK_ROWS}"  # noqa: S608 (constants)


def extend_blocks(connection: sqlite3.Connection, last: int, times: Sequence[float]) -> None:
    """Add the times of the newest rows, of which `last` is the newest, to their blocks."""
    blocks = range(max(1, last - len(times) + 1) // BLOCK_ROWS, last // BLOCK_ROWS + 1)
    connection.executemany(EXTEND, [(block, min(times), max(times)) for block in blocks])


def trim_blocks(connection: sqlite3.Connection) -> None:
    """Delete the blocks before the oldest row."""
    connection.execute(TRIM)


def first_since(connection: sqlite3.Connection, time: float) -> int | None:
    """Return the first row whose time is `time` or later."""
    found = connection.execute(FIRST_SINCE, (time,)).fetchone()
    return found[0] if found else None


def last_until(connection: sqlite3.Connection, time: float) -> int | None:
    """Return the last row whose time is `time` or earlier."""
    found = connection.execute(LAST_UNTIL, (time,)).fetchone()
    return found[0] if found else None
