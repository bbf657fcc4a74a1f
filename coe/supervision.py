"""Supervised background tasks.

A task that ends unexpectedly is logged, counted and restarted after a pause that doubles with each failure.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 60.0
"""Shortest and longest pause before a restart; it doubles with each failure."""
HEALTHY_SECONDS = 60.0
"""After a run of this duration, the next restart uses the shortest pause again."""

Work = Callable[[], Awaitable[None]]
TaskFailed = Callable[[str], None]
"""Counts a failure of the task of this name."""

_log = logging.getLogger("coe.supervision")


def ignore_failure(name: str) -> None:
    """Do nothing; for processes without metrics."""


def supervised(
    work: Work, name: str, *, task_failed: TaskFailed = ignore_failure, may_return: bool = False
) -> asyncio.Task[None]:
    """Run `work` in a task and restart it whenever it raises, until the task is cancelled.

    If `work` returns, the task ends with `may_return`; otherwise that counts as a failure. `name` becomes the label of
    a metric, so it must be one of few fixed words.
    """
    return asyncio.create_task(_supervise(work, name, task_failed, may_return=may_return), name=f"coe-{name}")


async def _supervise(work: Work, name: str, task_failed: TaskFailed, *, may_return: bool) -> None:
    loop, pause = asyncio.get_running_loop(), 0.0
    while True:
        began = loop.time()
        error = await _failure_of(work)
        if error is None and may_return:
            return
        pause = next_pause(pause, ran=loop.time() - began)
        task_failed(name)
        _log.error("background task %r ended unexpectedly; it restarts in %g s", name, pause, exc_info=error)
        await asyncio.sleep(pause)


def log_failure(task: asyncio.Task[None]) -> None:
    """Log the exception of a task that runs once; for `add_done_callback`."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("background task %r failed", task.get_name(), exc_info=error)


def next_pause(
    previous: float, *, ran: float, first: float = FIRST_PAUSE_SECONDS, longest: float = MAX_PAUSE_SECONDS
) -> float:
    """Return the seconds before the next restart of something that `ran` for some seconds after the `previous` pause
    (0: it is the first)."""
    return first if not previous or ran >= HEALTHY_SECONDS else min(previous * 2, longest)


async def _failure_of(work: Work) -> BaseException | None:
    """Return the exception of `work`, or None if it returns. Re-raises a cancellation of this task."""
    try:
        await work()
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return error  # an awaitable inside `work` was cancelled, not this task
    except Exception as error:
        return error
    return None
