"""A worker process: builds the application, serves it until SIGTERM, and reports its start to the parent."""

from __future__ import annotations

import asyncio
import logging
import logging.config
import resource
import signal
import socket
import threading
from collections.abc import Callable
from ctypes import c_uint64
from multiprocessing.sharedctypes import RawArray

import uvloop
from starlette.applications import Starlette

from coe.settings import Settings
from coe.supervision import ignore_failure
from gateway.observability.logs import log_uncaught, logging_config
from gateway.process.signals import DRAIN_SIGNAL, RELOAD_SIGNAL, end_with_parent
from gateway.server import Server

BEAT_SECONDS = 5.0
_log = logging.getLogger("gateway")


MAX_CONNECTIONS = 16_384
"""Client connections of one worker process; further ones are refused."""
Build = Callable[[int], Starlette]
"""Builds the application of the worker of that number."""


class SharedState:
    """Messages between parent and workers in shared memory, by the number of the worker. No lock is needed: a
    worker writes while it runs, and the parent after it has ended."""

    def __init__(self, workers: int) -> None:
        self.beats = RawArray(c_uint64, workers)
        """Counts that grow while an event loop runs; 0 before the worker serves requests."""
        self.crashes = RawArray(c_uint64, workers)

    def beat(self, worker: int) -> None:
        """Count now and every BEAT_SECONDS. Call it in the event loop of the worker, once."""
        self.beats[worker] += 1
        asyncio.get_running_loop().call_later(BEAT_SECONDS, self.beat, worker)

    def counted_crashes(self) -> dict[tuple[str, ...], float]:
        """Crashes since the parent started, by worker."""
        return {(str(worker),): float(crashes) for worker, crashes in enumerate(self.crashes)}


def run_worker(
    build: Build,
    settings: Settings,
    *,
    listener: socket.socket,
    shared: SharedState,
    parent: int,
    number: int,
) -> None:
    """Run worker `number`, from 0, until SIGTERM. Exits with code 1 if the application cannot start or fails."""
    for ignored in (DRAIN_SIGNAL, RELOAD_SIGNAL):  # until the application handles them
        signal.signal(ignored, signal.SIG_IGN)
    logging.config.dictConfig(logging_config(settings))  # a process that is not a fork inherits none
    log_uncaught()
    serving = threading.Event()
    end_with_parent(parent, serving)

    def started() -> None:
        serving.set()
        shared.beat(number)

    try:
        app = build(number)
        app.state.worker_crashes = shared.counted_crashes
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve_application(app, listener, started=started))
    except Exception:
        _log.critical("a worker failed" if serving.is_set() else "a worker cannot start", exc_info=True)
        raise SystemExit(1) from None


async def serve_application(
    app: Starlette, listener: socket.socket, *, started: Callable[[], None] = lambda: None
) -> None:
    """Serve the application until SIGTERM, then end as `Server` does. `started` is called once it is ready."""

    def count_failure(name: str) -> None:
        getattr(app.state, "task_failed", ignore_failure)(name)

    server = Server(app, max_connections=_max_connections(), on_start=started, task_failed=count_failure)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
    async with app.router.lifespan_context(app):
        await server.serve([listener])


def _max_connections() -> int:
    """MAX_CONNECTIONS, at most a third of the open files: a request needs one or two more for its expert."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(soft // 3, MAX_CONNECTIONS)
