"""A pool of connections to the Redis that keeps documents: bounded in number and time, every failure an own error."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from coe.errors import ConfigError, RetrievalError

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 10.0
CONNECTIONS = 16


class Rebuilding(RetrievalError):
    """Somebody makes a new version of the index, so nothing may be written."""


class Moved(RetrievalError):
    """The version that was to be written is not, or no longer, the one in use."""


class Connection:
    """`client` to ask with, through `answer`; `place` names the server in errors, without its password."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError when `url` cannot be a Redis address."""
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError

        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                timeout=ANSWER_SECONDS,
                socket_connect_timeout=CONNECT_SECONDS,
                socket_timeout=ANSWER_SECONDS,
                retry=Retry(NoBackoff(), 1),
            )
            pool.connection_class(**pool.connection_kwargs)
        except (ValueError, TypeError):  # unnamed: it may quote a part of the password
            raise ConfigError(
                "retrieval.store: not a Redis address; write redis://[user:password@]host:6379/0, the password in "
                "%-escapes"
            ) from None
        where = pool.connection_kwargs
        self.place = f"redis at {where.get('host', 'localhost')}:{where.get('port', 6379)}"
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
