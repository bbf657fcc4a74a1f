"""The bounded way to the Redis that counts for all gateways."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from coe.redis import place_of, redis_pool
from gateway.access.script import TAKE

if TYPE_CHECKING:
    from redis.asyncio import Redis

ANSWER = 0.2
"""Seconds for one step, connecting included; a request waits for it."""
GRACE = 0.05
"""More seconds for an answer that is there and was not read, since the process itself was held up."""
CONNECTIONS = 8


def client_of(url: str) -> Redis:
    """A client without time limits of its own: whoever asks sets one. Nothing is connected before the first command.
    Raises ConfigError when `url` cannot be a Redis address."""
    from redis.asyncio import Redis

    pool = redis_pool(
        url, key="access.counters", connections=CONNECTIONS, connect=None, answer=None, retries=0
    )  # what may have been done must not be done twice
    return Redis(connection_pool=pool)


class AwayError(Exception):
    """Redis did not answer in time, or not as it should."""


class Connection:
    """Nothing is connected before the first step."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError when `url` cannot be a Redis address."""
        self._client = client_of(url)
        self.place = place_of(self._client.connection_pool)
        self._take = self._client.register_script(TAKE)

    async def take(self, key: str, arguments: Sequence[str | float]) -> list[float]:
        """One step for the API key named `key`. Raises AwayError."""
        levels = f"coe:use:{{{key}}}"  # the braces put both keys into one slot of a Redis cluster
        step = asyncio.ensure_future(self._take(keys=[levels, f"{levels}:slots"], args=arguments))
        try:
            for seconds in (ANSWER, GRACE):
                await asyncio.wait((step,), timeout=seconds)
                if step.done():
                    return [float(number) for number in step.result()]
        except Exception as error:  # whatever the client library has: no request fails for the sake of counting
            raise AwayError(f"{type(error).__name__}: {error}") from error
        finally:
            step.cancel()
        raise AwayError(f"no answer within {ANSWER + GRACE:g} s")

    async def aclose(self) -> None:
        await self._client.aclose()
        await self._client.connection_pool.disconnect()
