"""The lock that lets one learning job run at a time: a lease in the log's Redis, else a file lock.

A thread extends the lease in Redis while the job runs, so that a long fit does not lose it. Before a job changes
anything it checks that it still holds the lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from coe.errors import JobError, StoreError
from coe.file_lock import file_lock, holder_name
from coe.redis import BlockingRedisClient

LOCK_KEY = "coe:retrain"
LEASE_SECONDS = 30.0
"""Time that the lock outlives a job that was killed or disconnected."""
EXTENSION_SECONDS = 10.0
"""Time between two extensions of the lease."""
REDIS_TIMEOUT_SECONDS = 5.0

CheckLock = Callable[[], None]
"""Raises JobError unless this job still holds the lock."""


def job_lock(url: str, *, home: Path, lease: float = LEASE_SECONDS) -> AbstractContextManager[CheckLock]:
    """A context that one job at a time enters, of all that share the Redis at `url` or the state folder `home`.

    Yields a check to call before anything is changed. Raises JobError, which names the holder, where another job runs,
    and StoreError where Redis does not answer.
    """
    if url.startswith(("redis://", "rediss://")):
        return _redis_lock(url, lease)
    return _file_lock(home / "retrain.lock")


@contextmanager
def _file_lock(path: Path) -> Iterator[CheckLock]:
    with file_lock(path, held=_held_error):
        yield lambda: None  # the kernel holds the lock as long as this process lives


@contextmanager
def _redis_lock(url: str, lease: float) -> Iterator[CheckLock]:
    redis = BlockingRedisClient(
        url,
        key="log.url",
        error=lambda problem: StoreError(f"retrain: the lock in Redis cannot be acquired ({problem})"),
        connect_timeout=REDIS_TIMEOUT_SECONDS,
        timeout=REDIS_TIMEOUT_SECONDS,
    )
    lock = redis.client.lock(LOCK_KEY, timeout=lease, blocking=False, thread_local=False)
    stopped = threading.Event()

    def check() -> None:
        """Extend the lease now. Raises JobError where it is lost or Redis does not answer."""
        try:
            with redis.errors():
                lock.extend(lease, replace_ttl=True)
        except StoreError as error:
            cause = error.__cause__
            raise JobError(f"retrain: the lock was lost ({cause}); nothing is promoted, run it again") from error

    def extend() -> None:
        while not stopped.wait(min(EXTENSION_SECONDS, lease / 3)):
            with suppress(JobError):  # `check` reports it before anything is changed
                check()

    with closing(redis):
        with redis.errors():
            if not lock.acquire(token=f"{holder_name()} {uuid4().hex[:8]}"):
                holder: Any = redis.client.get(LOCK_KEY)
                raise _held_error((holder or b"").decode())
        extension = threading.Thread(target=extend, name="coe-retrain-lease", daemon=True)
        extension.start()
        try:
            yield check
        finally:
            stopped.set()
            extension.join()
            with suppress(StoreError), redis.errors():  # the lease is lost, or it expires by itself
                lock.release()


def _held_error(holder: str) -> JobError:
    return JobError(f"retrain: another job is running ({holder or 'it has just begun'}); wait for it or stop it")
