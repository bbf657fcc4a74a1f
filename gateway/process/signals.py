"""Signals to a worker process (drain, reload, abort), its drain, and its end when the parent dies.

`handle_signals` connects the parent's signals. `Drain` reports the worker as not ready, and finally aborts the requests
that still run. `end_with_parent` ends a worker whose parent has died, even by SIGKILL, so that the port is free for the
next start.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from coe.errors import Draining
from gateway.services import Services

DRAIN_SIGNAL, RELOAD_SIGNAL, ABORT_SIGNAL = signal.SIGUSR1, signal.SIGHUP, signal.SIGUSR2


@asynccontextmanager
async def handle_signals(
    *, drain: Callable[[], None], reload: Callable[[], None], abort: Callable[[], None]
) -> AsyncIterator[None]:
    """Call these functions on DRAIN_SIGNAL, RELOAD_SIGNAL and ABORT_SIGNAL until the block ends, then ignore them.

    SIGINT is ignored. Ctrl-C in a terminal sends it to all processes, and only the parent acts on it.
    """
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(DRAIN_SIGNAL, drain)
    loop.add_signal_handler(RELOAD_SIGNAL, reload)
    loop.add_signal_handler(ABORT_SIGNAL, abort)
    loop.remove_signal_handler(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        for number in (DRAIN_SIGNAL, RELOAD_SIGNAL, ABORT_SIGNAL):
            loop.add_signal_handler(number, _ignore)  # the records are still being written


def _ignore() -> None:
    """Do nothing. Without a handler, a signal would end the process."""


PARENT_CHECK_SECONDS = 0.2
"""Interval of checks of the parent."""
AFTER_PARENT_SECONDS = 5.0
"""Time for running requests to end after the parent's death."""
WRITE_SECONDS = 10.0
"""Time after that to write the records; then the process ends."""


def end_with_parent(parent: int, serving: threading.Event) -> None:
    """Ends this process when the process `parent` dies: closes the listener, finishes responses, writes records, exits.
    Before `serving` is set it exits at once.

    A thread checks the parent's id, and limits how long the end takes. Call it once, before anything that may block.
    """
    if os.getppid() != parent:  # it died before the call above
        os._exit(1)
    threading.Thread(target=_watch_parent, args=(parent, serving), name="coe-parent", daemon=True).start()


def _watch_parent(parent: int, serving: threading.Event) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    if not serving.is_set():
        os._exit(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(AFTER_PARENT_SECONDS)
    os.kill(os.getpid(), ABORT_SIGNAL)
    time.sleep(WRITE_SECONDS)
    os._exit(1)


FINISH_SECONDS = 30.0
"""Time for running requests to end, after the lame duck period."""


class Drain:
    """Ends a worker gracefully: reports it as not ready, and later cancels the requests that still run.

    `begin` starts the drain. For `lame_duck` seconds, readiness is off but connections are accepted, so that a load
    balancer can stop sending requests. Without a load balancer pass 0. Then the server closes its listener and idle
    connections; a request on another connection is still served.
    """

    def __init__(self, services: Services, *, lame_duck: float, finish: float = FINISH_SECONDS) -> None:
        self._services = services
        self._lame_duck = lame_duck
        self._finish = finish

    def begin(self) -> None:
        """Start the drain. Further calls have no effect."""
        if self._services.leaving:
            return
        self._services.leaving = True
        loop = asyncio.get_running_loop()
        loop.call_later(self._lame_duck + self._finish, self.abort)

    def abort(self) -> None:
        """Refuses new requests, and ends every running one with an error."""
        self._services.admission.closed = True
        for request in tuple(self._services.admission.active):
            request.cancel(Draining("this gateway ended before the answer was complete; try again", retry_after=1.0))
