"""After loading: what only that needed goes back to the system, and what stays is never looked through again. Later,
too, what requests needed and left behind goes back."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from coe.supervision import TaskFailed, ignore_failure, supervised

YOUNG = 20_000
"""New objects before Python's collector looks for circles among them. It would do so every 700, which the requests
under way make and free without it: nearly 3 % of all time."""
PAUSE = 30.0
"""Seconds between two times that memory is given back; each takes some 3 ms, in a thread."""


def settle() -> None:
    """Once per process, before it serves. Takes some 50 ms.

    Python's collector would go through all that was loaded, time and again, with every request waiting (18 ms); and
    glibc keeps what it was given back (50 MB of tables that were read, widened and joined).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG)
    give_back()


def give_back() -> None:
    """What is free goes to the system; glibc would keep it."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # other C libraries have none
        trim(0)


@asynccontextmanager
async def giving_back(*, every: float = PAUSE, task_failed: TaskFailed = ignore_failure) -> AsyncIterator[None]:
    """Meanwhile do so now and then: after a busy time glibc keeps some 10 MB."""
    task = supervised(partial(_give_back, every), "memory", task_failed=task_failed)
    try:
        yield
    finally:
        task.cancel()


async def _give_back(every: float) -> None:
    while True:
        await asyncio.sleep(every)
        await asyncio.to_thread(give_back)
