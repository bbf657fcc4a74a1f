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

import uvloop
from starlette.applications import Starlette

from coe.settings import Settings
from coe.supervision import ignore_failure
from gateway.http.server import HttpServer, Peers
from gateway.observability.logs import describe_error, log_uncaught, logging_config
from gateway.process.signals import DRAIN_SIGNAL, RELOAD_SIGNAL, end_with_parent
from gateway.process.worker_states import AcceptingWorkers, WorkerStates

_log = logging.getLogger("gateway")


MAX_CONNECTIONS = 16_384
"""Client connections of one worker process; further ones wait to be accepted."""
Build = Callable[[], Starlette]
"""Builds the application of a worker."""


def run_worker(
    build: Build,
    settings: Settings,
    *,
    listener: socket.socket,
    states: WorkerStates,
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
        states.set_ready(number)
        states.beat(number)
        serving.set()

    try:
        app = build()
        app.state.worker_crashes = states.crashes
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            peers = AcceptingWorkers(states, number)
            runner.run(serve_application(app, listener, started=started, peers=peers))
    except Exception as error:
        if not serving.is_set():
            states.set_failed(number, describe_error(error))
        _log.critical("a worker failed" if serving.is_set() else "a worker cannot start", exc_info=True)
        raise SystemExit(1) from None


async def serve_application(
    app: Starlette,
    listener: socket.socket,
    *,
    started: Callable[[], None] = lambda: None,
    peers: Peers | None = None,
) -> None:
    """Serve the application until SIGTERM, then end as `HttpServer` does. `started` is called once it is ready."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with app.router.lifespan_context(app):
        failed = getattr(app.state, "task_failed", ignore_failure)
        cohort = getattr(app.state, "cohort", None)
        heads = getattr(app.state, "heads", None)
        limit = _max_connections()
        async with HttpServer(
            app,
            listener,
            max_connections=limit,
            peers=peers,
            task_failed=failed,
            cohort=cohort,
            heads=heads,
        ):
            started()
            await stop.wait()


def _max_connections() -> int:
    """MAX_CONNECTIONS, at most a third of the open files: a request needs one or two more for its expert."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(soft // 3, MAX_CONNECTIONS)
