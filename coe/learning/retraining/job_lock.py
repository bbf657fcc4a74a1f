"""One job at a time: a lock in the log's Redis with a lease, or on a file where the log is one."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from coe.errors import JobError, LogError

LOCK_KEY = "coe:retrain"
LEASE_SECONDS = 30.0
"""Seconds that the lock outlives a job that was killed or cut off."""
EXTENSION_SECONDS = 10.0
"""Seconds between two extensions of the lease."""
REDIS_TIMEOUT_SECONDS = 5.0

CheckLock = Callable[[], None]
"""Raises JobError unless this job still is the only one."""


def job_lock(url: str, *, home: Path, lease: float = LEASE_SECONDS) -> AbstractContextManager[CheckLock]:
    """Entered by one job at a time of all that share the log at `url` (Redis) or the state folder `home`.

    Yields a check to call before anything is changed. Raises JobError, which names the holder, when another job is at
    work, and LogError when Redis cannot be asked.
    """
    if url.startswith(("redis://", "rediss://")):
        return _redis_lock(url, lease)
    return _file_lock(home / "retrain.lock")


def _holder_name() -> str:
    return f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"


@contextmanager
def _file_lock(path: Path) -> Iterator[CheckLock]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _held_error(file.read().strip()) from None
        file.truncate(0)
        file.write(_holder_name())
        file.flush()
        yield lambda: None  # the kernel holds it as long as this process lives


@contextmanager
def _redis_lock(url: str, lease: float) -> Iterator[CheckLock]:
    from redis import Redis
    from redis.exceptions import RedisError

    client = Redis.from_url(url, socket_connect_timeout=REDIS_TIMEOUT_SECONDS, socket_timeout=REDIS_TIMEOUT_SECONDS)
    lock = client.lock(LOCK_KEY, timeout=lease, blocking=False, thread_local=False)
    try:
        if not lock.acquire(token=f"{_holder_name()} {uuid4().hex[:8]}"):
            holder: Any = client.get(LOCK_KEY)
            raise _held_error((holder or b"").decode())
    except (RedisError, OSError) as error:
        client.close()
        raise LogError(
            f"retrain: the lock in Redis cannot be had ({error}); check that it runs and takes writes"
        ) from error
    except JobError:
        client.close()
        raise
    extended = _LeaseExtension(lock, lease)
    try:
        yield extended.assure
    finally:
        extended.stop()
        with suppress(RedisError, OSError):  # not ours any longer, or Redis is away and the lease runs out
            lock.release()
        client.close()


class _LeaseExtension:
    """Extends a lock from a thread, so that a long fit does not lose it."""

    def __init__(self, lock: Any, lease: float) -> None:
        self._lock, self._lease = lock, lease
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="coe-retrain-lease", daemon=True)
        self._thread.start()

    def assure(self) -> None:
        """Extend it now. Raises JobError when it is not held any more or Redis cannot say."""
        from redis.exceptions import RedisError

        try:
            self._lock.extend(self._lease, replace_ttl=True)
        except (RedisError, OSError) as error:
            raise JobError(f"retrain: the lock was lost ({error}); nothing is promoted, run it again") from error

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(min(EXTENSION_SECONDS, self._lease / 3)):
            with suppress(JobError):  # `assure` says so before anything is changed
                self.assure()


def _held_error(holder: str) -> JobError:
    return JobError(f"retrain: another job is at work ({holder or 'it has just begun'}); wait for it or stop it")
