"""A worker process: builds the application, serves it until SIGTERM, and reports its start to the parent."""

from __future__ import annotations

import asyncio
import logging
import logging.config
import signal
import socket
import threading
from collections.abc import Callable
from typing import Protocol

import uvloop
from starlette.applications import Starlette

from coe.settings import Settings
from coe.supervision import ignore_failure
from gateway.observability.logs import describe_error, log_uncaught, logging_config
from gateway.process.connections import ConnectionLimits, soft_limit
from gateway.process.signals import DRAIN_SIGNAL, RELOAD_SIGNAL, end_with_parent
from gateway.process.worker_states import WorkerStates
from gateway.server import Server

_log = logging.getLogger("gateway")


class Build(Protocol):
    """Function that builds the application of a worker; `restarted` is true if it replaces a crashed one."""

    def __call__(self, *, restarted: bool) -> Starlette: ...


def run_worker(
    build: Build,
    settings: Settings,
    *,
    listener: socket.socket,
    states: WorkerStates,
    parent: int,
    number: int,
    restarted: bool,
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
        app = build(restarted=restarted)
        app.state.worker_crashes = states.crashes
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve_application(app, listener, started=started))
    except Exception as error:
        if not serving.is_set():
            states.set_failed(number, describe_error(error))
        _log.critical("a worker failed" if serving.is_set() else "a worker cannot start", exc_info=True)
        raise SystemExit(1) from None


async def serve_application(
    app: Starlette, listener: socket.socket, *, started: Callable[[], None] = lambda: None
) -> None:
    """Serve the application until SIGTERM, then end as `Server` does. `started` is called once it is ready."""

    def count_failure(name: str) -> None:
        getattr(app.state, "task_failed", ignore_failure)(name)

    limit = ConnectionLimits.within(soft_limit()).clients
    server = Server(app, max_connections=limit, on_start=started, task_failed=count_failure)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
    async with app.router.lifespan_context(app):
        await server.serve([listener])
