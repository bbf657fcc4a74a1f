"""Connection to the Redis server that stores documents: a bounded pool whose errors become RetrievalErrors."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from coe.errors import RetrievalError
from coe.redis import place_of, redis_pool

CONNECT_TIMEOUT_SECONDS = 2.0
RESPONSE_TIMEOUT_SECONDS = 10.0
MAX_CONNECTIONS = 16


class IndexRebuilding(RetrievalError):
    """Another process is rebuilding the index, so nothing can be written."""


class VersionChanged(RetrievalError):
    """The version to write is not, or no longer, the current one."""


_SCRIPT_ERRORS = {"REBUILDING": IndexRebuilding, "VERSION_CHANGED": VersionChanged}
"""Errors that the scripts return."""


class DocumentsRedis:
    """`client` sends commands, and `response` awaits them; `place` names the server in errors, without its password."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError if `url` is not a Redis address."""
        from redis.asyncio import Redis
        from redis.exceptions import RedisError

        pool = redis_pool(
            url,
            key="retrieval.store",
            connections=MAX_CONNECTIONS,
            connect=CONNECT_TIMEOUT_SECONDS,
            answer=RESPONSE_TIMEOUT_SECONDS,
        )
        self.place = place_of(pool)
        self.client: Redis = Redis(connection_pool=pool)
        self._errors = (RedisError, OSError)

    async def response(self, command: Awaitable[Any]) -> Any:
        """Await a command. Raises RetrievalError with the remedy, or IndexRebuilding and VersionChanged."""
        try:
            return await command
        except self._errors as error:
            problem = str(error)
            for code, kind in _SCRIPT_ERRORS.items():
                if code in problem:
                    raise kind(f"{self.place}: the index is being rebuilt; try again later") from None
            raise RetrievalError(f"{self.place}: {problem[:300]}; {_remedy(problem)}") from error

    async def aclose(self) -> None:
        await self.client.aclose()
        await self.client.connection_pool.disconnect()


def _remedy(problem: str) -> str:
    if "unknown" in problem.lower() and "command" in problem.lower():
        return "documents need vector sets: Redis 8 or newer"
    if "OOM" in problem or "maxmemory" in problem:
        return "it is full: raise its maxmemory"
    if "READONLY" in problem or "read only replica" in problem:
        return "it is a read-only replica: name the primary in retrieval.store"
    return "check that it runs, takes writes and has memory"
