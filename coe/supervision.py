"""Supervised background tasks: one that ends unexpectedly is logged, counted and restarted.

When to try again something that failed: after a pause that doubles up to a cap.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
"""Bounds of the pause before a restart, which doubles with each failure."""
HEALTHY_SECONDS = 60.0
"""A task that ran as long restarts after the first pause again."""

TaskFailed = Callable[[str], None]
"""Counts a failure of the task with that name."""

_log = logging.getLogger("coe.supervision")


def ignored(name: str) -> None:
    """Counts no failure: for processes without metrics."""


def supervised(
    work: Callable[[], Awaitable[None]],
    name: str,
    *,
    task_failed: TaskFailed = ignored,
    may_return: bool = False,
) -> asyncio.Task[None]:
    """Run `work` in a task until that is cancelled, and again whenever it raises.

    Where it returns, the task ends if it `may_return`, and else that is a failure too. `name` is a fixed word: it
    becomes the label of a metric.
    """
    return asyncio.create_task(_supervise(work, name, task_failed, may_return=may_return), name=f"coe-{name}")


async def _supervise(
    work: Callable[[], Awaitable[None]], name: str, task_failed: TaskFailed, *, may_return: bool
) -> None:
    loop, pause = asyncio.get_running_loop(), 0.0
    while True:
        began = loop.time()
        error = await _failure_of(work)
        if error is None and may_return:
            return
        pause = following_pause(pause, ran=loop.time() - began)
        task_failed(name)
        _log.error("background task %r ended unexpectedly; it restarts in %g s", name, pause, exc_info=error)
        await asyncio.sleep(pause)


def log_failure(task: asyncio.Task[None]) -> None:
    """Log what ended a task that runs once; for `add_done_callback`."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("background task %r failed", task.get_name(), exc_info=error)


def following_pause(previous: float, *, ran: float) -> float:
    """Seconds before the next restart, for a task that ran for so long after the `previous` pause, 0 for none."""
    if not previous or ran >= HEALTHY_SECONDS:
        return FIRST_PAUSE_SECONDS
    return min(previous * 2, LONGEST_PAUSE_SECONDS)


async def _failure_of(work: Callable[[], Awaitable[None]]) -> BaseException | None:
    """What the work raised; None where it returned. A cancellation of this task is raised."""
    try:
        await work()
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return error  # something that it waited for was cancelled
    except Exception as error:
        return error
    return None


class Backoff:
    """In seconds: `first` after one failure, doubling to `longest`, back to none after a success."""

    def __init__(self, *, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._pause = 0.0
        self._until = 0.0

    @property
    def resting(self) -> bool:
        """Whether it is too early to try again."""
        return time.monotonic() < self._until

    def failed(self) -> None:
        self._pause = min(self._longest, self._pause * 2 or self._first)
        self._until = time.monotonic() + self._pause

    def reset(self) -> None:
        self._pause = self._until = 0.0
