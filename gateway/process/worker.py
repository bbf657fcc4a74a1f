"""A worker process: builds the application and serves it until SIGTERM, which drains it.

SIGHUP reloads. When the parent process has died, even by SIGKILL, the worker ends soon, so that the port is free for
the next start.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import logging.config
import multiprocessing
import os
import resource
import signal
import socket
from collections.abc import Callable
from ctypes import Array, c_uint64

import uvloop
from starlette.applications import Starlette
from threadpoolctl import threadpool_limits

from coe.errors import Draining
from coe.settings import Settings
from gateway.observability.logs import log_uncaught, logging_config
from gateway.server import Server
from gateway.services import Services

FINISH_SECONDS = 30.0
"""Time for running requests to end, after the lame duck period."""
PARENT_CHECK_SECONDS = 0.2
"""Interval of checks of the parent."""
AFTER_PARENT_SECONDS, WRITE_SECONDS = 5, 10
"""Time for running requests to end after the parent's death, and then to write the records."""
MAX_CONNECTIONS = 16_384
"""Client connections of one worker process; further ones are refused."""
Build = Callable[[int], Starlette]
"""Builds the application of the worker of that number."""

_log = logging.getLogger("gateway")


def run_worker(
    build: Build,
    settings: Settings,
    *,
    listener: socket.socket,
    beats: Array[c_uint64],
    number: int,
    crashes: int,
) -> None:
    """Run worker `number`, from 0, which crashed so many times before. Exits with code 1 if the application cannot
    start or fails. It counts up its place of `beats`, which the parent sees, from when it serves."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # until the application handles it
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the parent
    logging.config.dictConfig(logging_config(settings))  # a process that is not a fork inherits none
    log_uncaught()
    threadpool_limits(1, user_api="blas")  # OpenBLAS's own threads busy-wait for milliseconds after a product

    def beat() -> None:
        beats[number] += 1

    try:
        serving = serve_application(build(number), listener, lame_duck=settings.drain, crashes=crashes, beat=beat)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serving)
    except Exception:
        _log.critical("a worker failed, or cannot start", exc_info=True)
        raise SystemExit(1) from None


async def serve_application(
    app: Starlette,
    listener: socket.socket,
    *,
    lame_duck: float = 0,
    crashes: int = 0,
    beat: Callable[[], None] = lambda: None,
) -> None:
    """Serve the application until SIGTERM or the end of the parent process. `beat` is called all the time
    from when it serves."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)  # a request needs one or two more for its expert
    limit = MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(soft // 3, MAX_CONNECTIONS)
    server = Server(app, max_connections=limit)
    async with app.router.lifespan_context(app):
        services: Services = app.state.services
        services.metrics.crashes = crashes
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, lambda: drain(services, server.stop, lame_duck=lame_duck))
        if services.reload is not None:
            loop.add_signal_handler(signal.SIGHUP, services.reload.request)
        watch = asyncio.create_task(_end_with_parent(services, server, beat), name="coe-parent")
        gc.freeze()  # full collections would visit all loaded objects while every request waits
        gc.set_threshold(20_000)  # at the default of 700 collections take some 3 % of the processor time
        try:
            await server.serve([listener])
        finally:
            watch.cancel()


def drain(services: Services, stop: Callable[[], None], *, lame_duck: float, finish: float = FINISH_SECONDS) -> None:
    """End a worker gracefully. Further calls have no effect.

    For `lame_duck` seconds, readiness is off but connections are accepted, so that a load balancer can stop sending
    requests. Then `stop` closes the listener and idle connections; a request on another connection is still served.
    After `finish` seconds more, the requests that still run are aborted.
    """
    if not services.leaving:
        services.leaving = True
        loop = asyncio.get_running_loop()
        loop.call_later(lame_duck, stop)
        loop.call_later(lame_duck + finish, abort, services)


def abort(services: Services) -> None:
    """Refuse new requests, and end every running one with an error."""
    services.admission.closed = True
    for request in tuple(services.admission.active):
        request.cancel(Draining("this gateway ended before the answer was complete; try again", retry_after=1.0))


async def _end_with_parent(services: Services, server: Server, beat: Callable[[], None]) -> None:
    """Call `beat` while the parent lives. When it dies, close the listener, finish responses and write records, all
    within a few seconds."""
    parent = multiprocessing.parent_process()
    while parent is None or os.getppid() == parent.pid:  # no event tells
        beat()
        await asyncio.sleep(PARENT_CHECK_SECONDS)
    services.leaving = True
    server.stop()
    asyncio.get_running_loop().call_later(AFTER_PARENT_SECONDS, abort, services)
    signal.alarm(AFTER_PARENT_SECONDS + WRITE_SECONDS)  # which ends the process
