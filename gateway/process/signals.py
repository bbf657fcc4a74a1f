"""Signals to a worker process: from its parent, and from its own watch on the parent."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

LEAVE, RELOAD, CUT = signal.SIGUSR1, signal.SIGHUP, signal.SIGUSR2


@asynccontextmanager
async def hearing(
    *, leave: Callable[[], None], reload: Callable[[], None], cut: Callable[[], None]
) -> AsyncIterator[None]:
    """LEAVE, RELOAD and CUT call these until the block ends. SIGINT is ignored: Ctrl-C in a terminal reaches every
    process of it, and the parent alone decides what follows."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(LEAVE, leave)
    loop.add_signal_handler(RELOAD, reload)
    loop.add_signal_handler(CUT, cut)
    loop.remove_signal_handler(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        loop.remove_signal_handler(LEAVE)
        loop.remove_signal_handler(RELOAD)
        loop.remove_signal_handler(CUT)
        signal.signal(CUT, signal.SIG_IGN)  # no request is left, and the records are still being written
