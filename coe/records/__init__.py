"""The routing log and the feedback beside it: where they are opened, and the writer off the request path."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from coe.errors import ConfigError
from coe.records.feedback import FeedbackLog
from coe.records.feedback_writer import FeedbackWriter, Pending
from coe.records.record import RoutingLog
from coe.records.writer import RecordWriter

__all__ = ["RETENTION", "FeedbackWriter", "Pending", "RecordWriter", "missing_file", "open_feedback", "open_log"]

RETENTION = 500_000
"""Records a log keeps unless told otherwise; older ones make room. About 2 kB each, so a gigabyte."""

FORMS = "write sqlite:///path/records.db (relative to the configuration), sqlite:////absolute/path.db, or redis://host:6379/0"


def open_log(url: str, *, base: Path, retention: int = RETENTION, days: float | None = None) -> RoutingLog:
    """The routing log at `url`, keeping its newest `retention` records of the last `days`, None for however old;
    relative SQLite paths start at `base`. What is to go goes when something is appended.

    Nothing is connected or created before the first read or append, so a server that is away delays nobody.
    Raises ConfigError for an address that cannot be meant; the message never repeats `url`, which may hold a password.
    """
    if _scheme(url) == "sqlite":
        from coe.records.sqlite_log import SqliteLog

        return SqliteLog(base / _sqlite_path(url), retention=retention, days=days)
    from coe.records.redis_log import RedisLog

    return RedisLog(url, retention=retention, days=days)


def open_feedback(url: str, *, base: Path, retention: int = RETENTION, days: float | None = None) -> FeedbackLog:
    """The feedback kept beside the routing log at `url`, its newest `retention` events; otherwise as `open_log`."""
    if _scheme(url) == "sqlite":
        from coe.records.sqlite_feedback import SqliteFeedback

        return SqliteFeedback(base / _sqlite_path(url), retention=retention, days=days)
    from coe.records.redis_feedback import RedisFeedback

    return RedisFeedback(url, retention=retention, days=days)


def missing_file(url: str, *, base: Path) -> Path | None:
    """The SQLite file of the log at `url` where it does not exist yet, and reading would create an empty one."""
    if _scheme(url) != "sqlite" or (path := base / _sqlite_path(url)).exists():
        return None
    return path


def _scheme(url: str) -> str:
    """`sqlite`, `redis` or `rediss`. Raises ConfigError for anything else."""
    scheme = url.partition(":")[0] if ":" in url else ""
    if scheme in ("sqlite", "redis", "rediss"):
        return scheme
    raise ConfigError(f"routing log: {scheme or 'no scheme'!r} is not a kind of log; {FORMS}")


def _sqlite_path(url: str) -> str:
    parts = urlsplit(url)
    path = unquote(parts.path.removeprefix("/"))
    if parts.netloc or parts.query or parts.fragment or not path or path.endswith("/"):
        raise ConfigError(f"routing log: the sqlite address does not name one file; {FORMS}")
    return path
