"""What a worker process hears from its parent."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

LEAVE, RELOAD = signal.SIGUSR1, signal.SIGHUP


@asynccontextmanager
async def hearing(*, leave: Callable[[], None], reload: Callable[[], None]) -> AsyncIterator[None]:
    """LEAVE and RELOAD call these until the block ends. SIGINT is ignored: Ctrl-C in a terminal reaches every process
    of it, and the parent alone decides what follows."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(LEAVE, leave)
    loop.add_signal_handler(RELOAD, reload)
    loop.remove_signal_handler(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        loop.remove_signal_handler(LEAVE)
        loop.remove_signal_handler(RELOAD)
