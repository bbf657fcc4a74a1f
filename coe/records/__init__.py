"""The routing log and the feedback next to it: how to open them, and the writer that keeps them off the request path.

`open_log_and_feedback` chooses SQLite or Redis by the address. Records and feedback wait in a LogWriter, which batches,
retries and spools.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from coe.errors import ConfigError, DataError
from coe.records.record import FeedbackLog, Pending, RoutingLog
from coe.records.writer import LogWriter

__all__ = ["RETENTION", "LogWriter", "Pending", "missing_file", "open_log_and_feedback", "require_log"]

RETENTION = 500_000
"""Default number of records that a log keeps; older ones are deleted. About 2 kB each, so a gigabyte."""

ADDRESS_FORMS = "write sqlite:///path/records.db (relative to the configuration), sqlite:////absolute/path.db, or redis://host:6379/0"


def open_log_and_feedback(
    url: str, *, base: Path, retention: int = RETENTION, days: float | None = None
) -> tuple[RoutingLog, FeedbackLog]:
    """Opens the routing log at `url` and the feedback next to it. Each keeps its newest `retention` entries of the last
    `days` (None: of any age), and deletes old ones on append.

    Relative SQLite paths start at `base`. Nothing is connected or created before the first read or append, so a server
    that is down delays no start. Both share the thread of a SQLite file, so closing one closes the other. Raises
    ConfigError for an invalid address; the message never repeats `url`, which may hold a password.
    """
    options: dict[str, Any] = {"retention": retention, "days": days}
    if path := _sqlite_path(url, base):
        from coe.records import sqlite

        file = sqlite.Database(path, tables=sqlite.TABLES, version=sqlite.VERSION)
        return sqlite.SqliteLog(file, **options), sqlite.SqliteFeedback(file, **options)
    from coe.records import redis_log

    return redis_log.RedisLog(url, **options), redis_log.RedisFeedback(url, **options)


def missing_file(url: str, *, base: Path) -> Path | None:
    """The SQLite file of the log at `url` if it does not exist yet, so that reading would create an empty one; else
    None."""
    path = _sqlite_path(url, base)
    return None if path is None or path.exists() else path


def require_log(url: str, *, base: Path) -> None:
    """Raises DataError if the log at `url` is a file that does not exist yet."""
    if missing := missing_file(url, base=base):
        what = "there is no routing log yet: the gateway creates it with the first request"
        raise DataError(f"{missing}: {what}; check --config and COE_HOME")


def _sqlite_path(url: str, base: Path) -> Path | None:
    """The file of a SQLite log, None for a Redis. Raises ConfigError for any other address."""
    scheme = url.partition(":")[0] if ":" in url else ""
    if scheme in ("redis", "rediss"):
        return None
    if scheme != "sqlite":
        raise ConfigError(f"routing log: {scheme or 'no scheme'!r} is not a kind of log; {ADDRESS_FORMS}")
    parts = urlsplit(url)
    path = unquote(parts.path.removeprefix("/"))
    if parts.netloc or parts.query or parts.fragment or not path or path.endswith("/"):
        raise ConfigError(f"routing log: the sqlite address does not name one file; {ADDRESS_FORMS}")
    return base / path
