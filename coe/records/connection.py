"""A pool of connections to one Redis: opened on first use, bounded in number and time, every failure a LogError."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from coe.errors import LogError
from coe.redis import place_of, redis_pool

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 5.0
CONNECTIONS = 8


class LogRedis:
    """`client` to ask with, through `answer`; `place` names the server in errors, without its password."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError when `url` cannot be a Redis address."""
        from redis.asyncio import Redis
        from redis.exceptions import RedisError

        pool = redis_pool(
            url, key="log.url", connections=CONNECTIONS, connect=CONNECT_SECONDS, answer=ANSWER_SECONDS
        )  # appending twice is harmless
        self.place = place_of(pool)
        self.client: Redis = Redis(connection_pool=pool)
        self._errors = (RedisError, OSError)

    async def answer(self, command: Awaitable[Any]) -> Any:
        """What Redis answers. Raises LogError with the remedy."""
        try:
            return await command
        except self._errors as error:
            raise LogError(f"{self.place}: {str(error).rstrip('.')}; {_remedy(str(error))}") from error

    async def aclose(self) -> None:
        await self.client.aclose()
        await self.client.connection_pool.disconnect()


def _remedy(problem: str) -> str:
    if "OOM command" in problem or problem.startswith("command not allowed when used memory"):
        return "it is full: raise its maxmemory or give it a log of fewer records"
    if "READONLY" in problem or "read only replica" in problem:
        return "it is a read-only replica: name the primary in log.url"
    return "check that it runs, takes writes and has memory"
