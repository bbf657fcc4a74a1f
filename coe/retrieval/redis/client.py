"""A bounded connection pool to the Redis that keeps documents; every failure becomes a RetrievalError."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from coe.errors import RetrievalError
from coe.redis import place_of, redis_pool

CONNECT_SECONDS = 2.0


ANSWER_SECONDS = 10.0


CONNECTIONS = 16


class Rebuilding(RetrievalError):
    """Somebody makes a new version of the index, so nothing may be written."""


class Moved(RetrievalError):
    """The version that was to be written is not, or no longer, the one in use."""


class DocumentsRedis:
    """`client` to ask with, through `answer`; `place` names the server in errors, without its password."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError when `url` cannot be a Redis address."""
        from redis.asyncio import Redis
        from redis.exceptions import RedisError

        pool = redis_pool(
            url, key="retrieval.store", connections=CONNECTIONS, connect=CONNECT_SECONDS, answer=ANSWER_SECONDS
        )
        self.place = place_of(pool)
        self.client: Redis = Redis(connection_pool=pool)
        self._errors = (RedisError, OSError)

    async def answer(self, command: Awaitable[Any]) -> Any:
        """What Redis answers. Raises RetrievalError with the remedy; Rebuilding and Moved as scripts say."""
        try:
            return await command
        except self._errors as error:
            problem = str(error)
            for kind in (Rebuilding, Moved):
                if kind.__name__.upper() in problem:
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
