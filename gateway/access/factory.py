"""Where the use of keys is counted: in the process and its state folder, or in Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from coe.errors import ConfigError
from coe.registry import AccessSpec
from coe.supervision import TaskFailed, ignore_failure
from gateway.access.durable import FILE, DurableLimiter
from gateway.access.limits import Limiter, meters_of
from gateway.access.redis import RedisLimiter
from gateway.access.redis_connection import LimitsRedis

MEMORY = "memory"


@asynccontextmanager
async def open_limiter(
    counters: str, *, home: Path, task_failed: TaskFailed = ignore_failure
) -> AsyncIterator[Limiter]:
    """The limiter that `access.counters` names, for as long as it is entered; counts in memory are kept in the state
    folder `home`. Raises ConfigError for an address that
    cannot be one; a Redis that does not answer is waited for while this process counts for itself."""
    if counters == MEMORY:
        async with DurableLimiter(home / FILE, task_failed=task_failed) as durable:
            yield durable
        return
    async with RedisLimiter(counters, task_failed=task_failed) as limiter:
        yield limiter


def check_counters(spec: AccessSpec, *, workers: int) -> None:
    """Raises ConfigError for an address that cannot be one, and where several processes would each count for
    themselves."""
    if spec.counters != MEMORY:
        LimitsRedis(spec.counters)
    elif workers > 1 and any(meters_of(key.limits) for key in spec.keys):
        raise ConfigError(
            f"access.counters: {workers} worker processes would each count the limits of access.keys for themselves; "
            "write counters: redis://HOST:6379/0, or set COE_WORKERS=1"
        )
