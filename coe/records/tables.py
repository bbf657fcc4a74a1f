"""The tables of a SQLite log, and the numbered steps that lead to them from whatever an earlier CoE left."""

from __future__ import annotations

from coe.records.database import Migration

# An index on one column also orders its rows by seq, so a filtered page needs no sorting. session, tenant and reason
# came later: their indexes leave out what has none, and cost nothing where nobody sends a session.
MIGRATIONS: tuple[Migration, ...] = (
    (
        """CREATE TABLE records (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            request_id TEXT NOT NULL UNIQUE,
            time REAL NOT NULL,
            category TEXT NOT NULL,
            expert TEXT NOT NULL,
            outcome TEXT NOT NULL,
            record BLOB NOT NULL
        )""",
        "CREATE INDEX records_time ON records (time)",
        "CREATE INDEX records_category ON records (category)",
        "CREATE INDEX records_expert ON records (expert)",
        "CREATE INDEX records_outcome ON records (outcome)",
    ),
    (
        """CREATE TABLE feedback (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            slot BLOB NOT NULL UNIQUE,
            event_id TEXT NOT NULL,
            time REAL NOT NULL,
            event BLOB NOT NULL
        )""",
    ),
    ("CREATE INDEX feedback_time ON feedback (time)",),
    (  # some 20 µs a record, once: 10 s for 500,000, in which the others' records wait in their spools
        "ALTER TABLE records ADD COLUMN session TEXT",
        "ALTER TABLE records ADD COLUMN tenant TEXT",
        "ALTER TABLE records ADD COLUMN reason TEXT",
        """UPDATE records SET
            session = json_extract(CAST(record AS TEXT), '$.session'),
            tenant = json_extract(CAST(record AS TEXT), '$.tenant'),
            reason = json_extract(CAST(record AS TEXT), '$.reason')
        WHERE json_valid(CAST(record AS TEXT))""",
        "CREATE INDEX records_session ON records (session) WHERE session IS NOT NULL",
        "CREATE INDEX records_tenant ON records (tenant) WHERE tenant IS NOT NULL",
        "CREATE INDEX records_reason ON records (reason) WHERE reason IS NOT NULL",
    ),
)
"""Of the file, which holds the feedback too."""
