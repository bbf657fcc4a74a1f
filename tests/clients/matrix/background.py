"""Runs an asynchronous context in a thread and a loop of its own, because the tests wait for processes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager


@contextmanager
def in_thread(context: AbstractAsyncContextManager[None]) -> Iterator[None]:
    """Enter the context in a thread; leave it at the end of the block, when the loop's other tasks are cancelled."""
    entered: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def hold() -> None:
        async with context:
            stop = asyncio.Event()
            entered.set_result((asyncio.get_running_loop(), stop))
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(hold()))
    thread.start()
    loop, stop = entered.result(10)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
