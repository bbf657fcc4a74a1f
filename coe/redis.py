"""A bounded client for one Redis server, whose failures are one error class.

Each feature opens its own client with its error class, timeouts and number of connections: the routing log, each
SharedStore, and, with the blocking client, shared artifacts. Error messages name host and port of the
server, and never repeat its address, which may hold a password.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from coe.errors import ConfigError

if TYPE_CHECKING:
    import redis
    import redis.asyncio

    Pool = TypeVar("Pool", bound=redis.ConnectionPool | redis.asyncio.ConnectionPool)

MAX_PROBLEM_CHARACTERS = 300
"""Characters of Redis's own message that an error repeats."""

ErrorOf = Callable[[str], Exception]
"""Makes an exception from its message."""


class _Failures:
    """Names one server in errors, and turns the client library's exceptions into `error`.

    `key` is the setting of experts.yaml that declares the address.
    """

    def __init__(
        self,
        pool: redis.ConnectionPool | redis.asyncio.ConnectionPool,
        *,
        key: str,
        error: ErrorOf,
    ) -> None:
        from redis.exceptions import RedisError

        options = pool.connection_kwargs
        self.place = f"redis at {options.get('host', 'localhost')}:{options.get('port', 6379)}"
        self.caught = (RedisError, OSError)
        self._key, self._error = key, error

    def translated(self, error: BaseException) -> Exception:
        """The exception to raise for one of `caught`."""
        problem = str(error)[:MAX_PROBLEM_CHARACTERS].rstrip(".")
        return self._error(f"{self.place}: {problem}; {self._remedy(problem)}")

    def _remedy(self, problem: str) -> str:
        if "OOM command" in problem or "command not allowed when used memory" in problem:
            return "it is full: raise its maxmemory, or store less in it"
        if "READONLY" in problem or "read only replica" in problem:
            return f"it is a read-only replica: name the primary in {self._key}"
        if "unknown" in problem.lower() and "command" in problem.lower():
            return f"{self._key} needs Redis 6.2 or newer, or Valkey"
        return "check that it runs, accepts writes and has memory"


class RedisClient:
    """An asyncio client. It connects on the first command.

    `client` makes commands, and `run` awaits them; `place` names the server in errors. `connect_timeout` and `timeout`
    are in seconds, None where the caller bounds the time. One retry replaces a pooled connection that has died since.
    Raises ConfigError when `url` cannot be a Redis address.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str,
        error: ErrorOf,
        connections: int,
        connect_timeout: float | None,
        timeout: float | None,
    ) -> None:
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        pool = _checked_pool(
            lambda: BlockingConnectionPool.from_url(
                url,
                max_connections=connections,
                timeout=timeout,
                socket_connect_timeout=connect_timeout,
                socket_timeout=timeout,
                retry=Retry(NoBackoff(), 1),
            ),
            key,
        )
        self._failures = _Failures(pool, key=key, error=error)
        self._caught = self._failures.caught
        self.place = self._failures.place
        self.client: redis.asyncio.Redis = Redis(connection_pool=pool)

    async def run(self, command: Awaitable[Any]) -> Any:
        """Awaits a command of `client` and returns its reply. Raises `error`."""
        try:
            return await command
        except self._caught as error:
            raise self._failures.translated(error) from error

    def describe(self, error: Exception) -> str:
        """The message of an error of a command, with the server's name, also where the caller's time limit ended it."""
        if isinstance(error, TimeoutError):
            return str(self._failures.translated(TimeoutError("no reply in time")))
        return str(error) if str(error).startswith(self.place) else f"{self.place}: {error!r}"

    async def aclose(self) -> None:
        """Closes all connections."""
        await self.client.aclose()
        await self.client.connection_pool.disconnect()


class BlockingRedisClient:
    """A Redis client for threads. `errors()` wraps the commands of `client`."""

    def __init__(self, url: str, *, key: str, error: ErrorOf, connect_timeout: float, timeout: float) -> None:
        """Raises ConfigError when `url` cannot be a Redis address."""
        from redis import ConnectionPool, Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        pool = _checked_pool(
            lambda: ConnectionPool.from_url(
                url, socket_connect_timeout=connect_timeout, socket_timeout=timeout, retry=Retry(NoBackoff(), 1)
            ),
            key,
        )
        self._failures = _Failures(pool, key=key, error=error)
        self.place = self._failures.place
        self.client: redis.Redis = Redis(connection_pool=pool)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raises `error` for a failure inside the block."""
        try:
            yield
        except self._failures.caught as error:
            raise self._failures.translated(error) from error

    def close(self) -> None:
        """Closes all connections; the next command connects again."""
        self.client.close()
        self.client.connection_pool.disconnect()


def _checked_pool(create: Callable[[], Pool], key: str) -> Pool:
    """Creates a pool, and one connection object of it to find unknown options in the address.

    Raises ConfigError without the cause: where the password has an unescaped / or #, it would quote a part of it.
    """
    try:
        pool = create()
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError):
        raise ConfigError(
            f"{key}: not a Redis address; write redis://[user:password@]host:6379/0, the password in %-escapes"
        ) from None
    return pool
