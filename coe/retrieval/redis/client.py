"""The client for the Redis that keeps documents, and the errors of its scripts."""

from __future__ import annotations

from coe.errors import RetrievalError
from coe.redis import RedisClient

CONNECT_TIMEOUT_SECONDS = 2.0
TIMEOUT_SECONDS = 10.0
MAX_CONNECTIONS = 16
_TRY_AGAIN = "the index is being rebuilt; try again later"


class IndexRebuilding(RetrievalError):
    """Another process rebuilds the index, so it accepts no writes."""


class VersionChanged(RetrievalError):
    """The version to write to is not, or no longer, the one in use."""


def documents_client(url: str) -> RedisClient:
    """The client for `url`, whose errors are RetrievalErrors. Raises ConfigError when it cannot be a Redis address."""
    return RedisClient(
        url,
        key="retrieval.store",
        error=RetrievalError,
        connections=MAX_CONNECTIONS,
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        timeout=TIMEOUT_SECONDS,
        requires="vector sets: Redis 8 or newer",
        script_errors={
            "REBUILDING": lambda place: IndexRebuilding(f"{place}: {_TRY_AGAIN}"),
            "VERSION_CHANGED": lambda place: VersionChanged(f"{place}: {_TRY_AGAIN}"),
        },
    )
