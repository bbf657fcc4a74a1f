"""After loading: what only that needed goes back to the system, and what stays is never looked through again. Later,
too, what requests needed and left behind goes back."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from coe.supervision import TaskFailed, ignored, supervised

GC_THRESHOLD = 20_000
"""New objects before Python's collector looks for circles among them. It would do so every 700, which the requests
under way make and free without it: nearly 3 % of all time."""
TRIM_INTERVAL_SECONDS = 30.0
"""Seconds between two times that memory is given back; each takes some 3 ms, in a thread."""


def tune_gc() -> None:
    """Once per process, before it serves. Takes some 50 ms.

    Python's collector would go through all that was loaded, time and again, with every request waiting (18 ms); and
    glibc keeps what it was given back (50 MB of tables that were read, widened and joined).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    trim_memory()


def trim_memory() -> None:
    """What is free goes to the system; glibc would keep it."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # other C libraries have none
        trim(0)


@asynccontextmanager
async def trimming_memory(
    *, every: float = TRIM_INTERVAL_SECONDS, task_failed: TaskFailed = ignored
) -> AsyncIterator[None]:
    """Meanwhile do so now and then: after a busy time glibc keeps some 10 MB."""
    task = supervised(partial(_trim_periodically, every), "memory", task_failed=task_failed)
    try:
        yield
    finally:
        task.cancel()


async def _trim_periodically(every: float) -> None:
    while True:
        await asyncio.sleep(every)
        await asyncio.to_thread(trim_memory)
