"""A pool of connections to one Redis, bounded in number and time; an address that is none never quotes its password."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from coe.errors import ConfigError

if TYPE_CHECKING:
    import redis
    import redis.asyncio

    Pool = TypeVar("Pool", bound=redis.ConnectionPool | redis.asyncio.ConnectionPool)


def redis_pool(
    url: str, *, key: str, connections: int, connect: float | None, answer: float | None, retries: int = 1
) -> redis.asyncio.BlockingConnectionPool:
    """Nothing is connected before the first command. `key` is where experts.yaml declares the address; `connect` and
    `answer` are seconds, None where whoever asks sets a limit. One retry meets a pooled connection that has died since;
    where a command must not be done twice there may be none. Raises ConfigError when `url` cannot be a Redis address.
    """
    from redis.asyncio import BlockingConnectionPool
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=connections,
            timeout=answer,
            socket_connect_timeout=connect,
            socket_timeout=answer,
            retry=Retry(NoBackoff(), retries),
        )
        return _tried(pool)
    except (ValueError, TypeError):
        raise _no_address(key) from None


def blocking_redis_pool(url: str, *, key: str, connect: float, answer: float) -> redis.ConnectionPool:
    """The same for commands that are waited for in a thread."""
    from redis import ConnectionPool
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    try:
        pool = ConnectionPool.from_url(
            url, socket_connect_timeout=connect, socket_timeout=answer, retry=Retry(NoBackoff(), 1)
        )
        return _tried(pool)
    except (ValueError, TypeError):
        raise _no_address(key) from None


def place_of(pool: redis.ConnectionPool | redis.asyncio.ConnectionPool) -> str:
    """The server, for errors, without its password."""
    options = pool.connection_kwargs
    return f"redis at {options.get('host', 'localhost')}:{options.get('port', 6379)}"


def _tried(pool: Pool) -> Pool:
    """Unknown options in the URL show here, not at night."""
    pool.connection_class(**pool.connection_kwargs)
    return pool


def _no_address(key: str) -> ConfigError:
    """The cause is not named: where the password has an unescaped / or #, it would quote a part of it."""
    return ConfigError(
        f"{key}: not a Redis address; write redis://[user:password@]host:6379/0, the password in %-escapes"
    )
