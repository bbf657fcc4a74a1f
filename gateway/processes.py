"""The gateway's processes: Granian's parent and workers, with our way of ending and of reloading.

The parent gets the signals and decides; a worker hears from the parent alone. On SIGTERM or SIGINT the parent tells the
workers (SIGUSR1) to leave as `gateway/drain.py` says, waits out the lame duck, and has them stopped: Granian closes the
listeners and the idle connections, waits for the requests under way and closes the application, which writes the
records. A second signal ends everything at once. On SIGHUP the workers look for what has changed.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server import Server
from starlette.applications import Starlette

from coe.settings import Settings
from gateway.drain import FINISH
from gateway.logs import logging_config
from gateway.signals import LEAVE, RELOAD

FLUSH = 20
"""Seconds that a worker has, once its requests have ended, to write its records."""
IDLE = 75
"""Seconds for a request's headers to arrive, and for a connection to wait for its next request. Longer than balancers
keep theirs (60), so that none sends a request into a connection that is being closed."""
CONNECTIONS = 16_384
"""At one worker; more wait to be accepted."""


def serve(build: Callable[[], Starlette], settings: Settings, *, address: str) -> None:
    """Serve the application that `build` makes, once in every worker, until SIGINT or SIGTERM."""
    _allow_descriptors()
    signal.signal(LEAVE, signal.SIG_IGN)  # a worker that is only starting must not die of it
    processes = _Processes(settings, address=address)
    processes.serve(target_loader=build, wrap_loader=False)


class _Processes(Server):  # type: ignore[misc, valid-type]  # Granian chooses the class when it is imported
    def __init__(self, settings: Settings, *, address: str) -> None:
        super().__init__(
            "gateway",
            address=address,
            port=settings.port,
            interface=Interfaces.ASGI,
            loop=Loops.uvloop,
            http=HTTPModes.http1,  # with `auto` a connection that sends nothing is kept for ever
            http1_settings=HTTP1Settings(header_read_timeout=IDLE * 1000),
            backpressure=CONNECTIONS,
            workers=settings.workers,
            websockets=False,
            log_level=LogLevels.warning,
            log_dictconfig=logging_config(settings),
            respawn_failed_workers=True,
            workers_kill_timeout=round(FINISH) + FLUSH,
        )
        self._lame_duck = settings.drain
        self._leaving = False

    def signal_handler_interrupt(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self.pid:  # a worker that has not started yet
            os._exit(128 + number)
        if self._leaving:
            for worker in self.wrks:
                worker.kill()
            os._exit(128 + number)
        self._leaving = True
        for worker in self.wrks:
            worker.interrupt_by_parent = True  # its end is no failure from now on
        self._tell(LEAVE)
        if self._lame_duck:
            timer = threading.Timer(self._lame_duck, self._stop)
            timer.daemon = True
            timer.start()
        else:
            self._stop()

    def signal_handler_reload(self, *_: Any) -> None:
        self._tell(RELOAD)

    def _stop(self) -> None:
        self.interrupt_signal = True
        self.main_loop_interrupt.set()

    def _tell(self, number: signal.Signals) -> None:
        for worker in self.wrks:
            if worker.is_alive():
                os.kill(worker.inner.pid, number)


def _allow_descriptors() -> None:
    """As many as the system lets us have: every request under way needs two."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # a limit without end that the system does not mean (macOS)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
