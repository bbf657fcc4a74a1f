"""Keeps memory small and garbage collections short in a serving process.

After loading, start-up garbage is freed and the rest frozen, so that collections skip it. Freed memory goes back to the
system, once after loading and then at intervals.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from coe.supervision import TaskFailed, ignore_failure, supervised

GC_THRESHOLD = 20_000
"""New objects before a collection of the youngest generation. With Python's default of 700 requests trigger it all the
time: nearly 3 % of the CPU."""
TRIM_INTERVAL_SECONDS = 30.0
"""Interval at which freed memory is returned; each time takes about 3 ms, in a thread."""


def tune_gc() -> None:
    """Call once per process, before it serves. Takes about 50 ms.

    Without it the collector visits all loaded objects again and again while every request waits (18 ms), and glibc
    keeps 50 MB of freed tables.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    trim_memory()


def trim_memory() -> None:
    """Returns freed memory to the system; glibc would keep it."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # other C libraries have none
        trim(0)


@asynccontextmanager
async def trimming_memory(
    *, every: float = TRIM_INTERVAL_SECONDS, task_failed: TaskFailed = ignore_failure
) -> AsyncIterator[None]:
    """Trims memory at intervals until the block ends: after a busy time glibc keeps about 10 MB."""
    task = supervised(partial(_trim_periodically, every), "memory", task_failed=task_failed)
    try:
        yield
    finally:
        task.cancel()


async def _trim_periodically(every: float) -> None:
    while True:
        await asyncio.sleep(every)
        await asyncio.to_thread(trim_memory)
