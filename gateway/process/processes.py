"""The gateway's processes: Granian's parent and workers, with rules of our own for stopping, reloading and crashes.

The parent receives signals and decides; a worker acts only on signals from the parent. On SIGTERM or SIGINT the parent
makes the workers drain (SIGUSR1, see `gateway/process/signals.py`), waits for the lame duck period, and stops them:
Granian closes the listeners and idle connections, waits for running requests and closes the application, which writes
the records. A second signal ends everything at once. On SIGHUP the workers check for changes.

A worker that crashes starts again after a delay of its own; the other workers continue. If no worker ever became ready
and all have ended, the gateway stops with the cause. Workers end when the parent dies (`gateway/process/signals.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from multiprocessing.connection import wait
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server import Server
from starlette.applications import Starlette

from coe.errors import WorkerError
from coe.settings import Settings
from gateway.observability.logs import describe_error, log_start_failure, logging_config
from gateway.process.connections import ConnectionLimits, raise_limit, soft_limit
from gateway.process.signals import DRAIN_SIGNAL, FINISH_SECONDS, RELOAD_SIGNAL, ServerStop, end_with_parent
from gateway.process.worker_states import RespawnSchedule, WorkerStates

FLUSH_SECONDS = 20
"""Time for a worker to write its records after its requests have ended."""
IDLE_SECONDS = 75
"""Time limit for a request's headers, and for a connection to wait for its next request. Longer than that of load
balancers (60), so that none sends a request into a closing connection."""
START_CHECK_SECONDS = 0.5
"""Interval of checks for a first ready worker, while a crashed one waits for that."""
INTERVAL_SECONDS = 60.0
"""Interval of what the parent process does while its workers serve."""
SERVER_START_SECONDS = 0.05
"""Time of the event loop from the application's start to the server's; the loop does not run in between."""

_log = logging.getLogger("gateway")


def serve(
    build: Callable[[], Starlette],
    settings: Settings,
    *,
    address: str,
    at_intervals: Callable[[], None] | None = None,
) -> None:
    """Serves the application that `build` makes, once in every worker, until SIGINT or SIGTERM. The parent calls
    `at_intervals` at least every INTERVAL_SECONDS. Raises WorkerError if no worker could start."""
    raise_limit()
    signal.signal(DRAIN_SIGNAL, signal.SIG_IGN)  # a worker that is only starting must not die of it
    processes = _GatewayServer(settings, address=address, at_intervals=at_intervals)
    processes.serve(target_loader=build, wrap_loader=False)
    if processes.failure:
        raise WorkerError(processes.failure)


class _GatewayServer(Server):  # type: ignore[misc, valid-type]  # Granian chooses the class when it is imported
    def __init__(self, settings: Settings, *, address: str, at_intervals: Callable[[], None] | None) -> None:
        super().__init__(
            "gateway",
            address=address,
            port=settings.port,
            interface=Interfaces.ASGI,
            loop=Loops.uvloop,
            http=HTTPModes.http1,  # with `auto` a silent connection is never closed
            http1_settings=HTTP1Settings(header_read_timeout=IDLE_SECONDS * 1000),
            backpressure=ConnectionLimits.within(soft_limit()).clients,
            workers=settings.workers,
            websockets=False,
            log_level=LogLevels.warning,
            log_dictconfig=logging_config(settings),
            workers_kill_timeout=round(FINISH_SECONDS) + FLUSH_SECONDS,
        )
        self.main_loop_interrupt = _WakeEvent()
        self.failure = ""
        """Why no worker could start; empty otherwise."""
        self._states = WorkerStates(settings.workers)
        self._respawns = RespawnSchedule()
        self._lame_duck = settings.drain
        self._at_intervals = at_intervals
        self._draining = False

    def signal_handler_interrupt(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self.pid:  # a worker that has not started yet
            os._exit(128 + number)
        if self._draining:
            for worker in self.wrks:
                worker.kill()
            os._exit(128 + number)
        self._draining = True
        for worker in self.wrks:
            worker.interrupt_by_parent = True  # its end is no failure from now on
        self._signal_workers(DRAIN_SIGNAL)
        if self._lame_duck:
            timer = threading.Timer(self._lame_duck, self._stop)
            timer.daemon = True
            timer.start()
        else:
            self._stop()

    def signal_handler_reload(self, *_: Any) -> None:
        self._signal_workers(RELOAD_SIGNAL)

    def _stop(self) -> None:
        self.interrupt_signal = True
        self.main_loop_interrupt.set()

    def _stop_workers(self) -> None:
        """Stops the workers, and kills those that have not ended after the time limit. Granian's own method takes a
        worker for running while its other thread reaps it, and reports a kill that is none."""
        for worker in self.wrks:
            worker.terminate()
        deadline = time.monotonic() + self.workers_kill_timeout
        for number, worker in enumerate(self.wrks):
            if not wait([worker.inner.sentinel], max(0.0, deadline - time.monotonic())):
                text = "worker %d (process %d) has not stopped within %d s and is killed"
                _log.warning(text, number + 1, worker.inner.pid, self.workers_kill_timeout)
                worker.kill()
            worker.join()
        self.wrks.clear()

    def _signal_workers(self, number: signal.Signals) -> None:
        for worker in self.wrks:
            with suppress(ProcessLookupError):  # it has ended since
                if worker.is_alive():
                    os.kill(worker.inner.pid, number)

    # ------------------------------------------------------------------------------------------- crashes

    def _spawn_worker(self, idx: int, target: Any, callback_loader: Callable[[], Starlette]) -> Any:
        load = partial(_load_application, callback_loader, self._states, worker=idx, parent=self.pid)
        return super()._spawn_worker(idx, target, load)

    def _serve_loop(self, spawn_target: Any, target_loader: Callable[[], Starlette]) -> None:
        while not self.interrupt_signal and not self.failure:
            self.main_loop_interrupt.wait(self._pause())
            if self._at_intervals is not None:
                self._at_intervals()
            while self.interrupt_children:  # Granian's threads add to it
                self._crashed(self.interrupt_children.pop())
            if not self._draining and not self.failure and self._states.ever_ready:
                for worker in self._respawns.take_due():
                    self._respawn(worker, spawn_target, target_loader)

    def _pause(self) -> float | None:
        """Seconds until the next check; None if only a signal or a crash can require one."""
        if self._draining or (pause := self._respawns.wait()) is None:
            return INTERVAL_SECONDS if self._at_intervals is not None else None
        return pause if self._states.ever_ready else START_CHECK_SECONDS

    def _crashed(self, number: int) -> None:
        worker = self.wrks[number]
        self._states.count_crash(number)
        exit_description = _exit_description(worker.inner.exitcode)
        name = f"worker {number + 1} (process {worker.inner.pid})"
        if not self._states.ever_ready and not any(other.is_alive() for other in self.wrks):
            cause = self._states.cause(number) or "see the log above"
            self.failure = f"the gateway stops, because no worker could start: {name} {exit_description}; {cause}"
            return
        delay = self._respawns.crashed(number, uptime=time.monotonic() - worker.birth)
        _log.error("%s %s; the others serve on, and it starts again in %g s", name, exit_description, delay)

    def _respawn(self, number: int, spawn_target: Any, target_loader: Callable[[], Starlette]) -> None:
        worker = self._spawn_worker(number, spawn_target, target_loader)
        worker.start()
        self.wrks[number] = worker
        if self._draining:  # the signal came while it was being started
            worker.interrupt_by_parent = True
            self._signal_workers(DRAIN_SIGNAL)


class _WakeEvent:
    """Wakes the parent's loop, like an Event. Unlike an Event's, its `set` may run in a signal handler that interrupts
    `wait`."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        self._queue.put(None)

    def wait(self, timeout: float | None = None) -> None:
        """Returns after a `set`, or after `timeout` seconds."""
        with suppress(Empty):
            self._queue.get(timeout=timeout)


def _load_application(build: Callable[[], Starlette], states: WorkerStates, *, worker: int, parent: int) -> Starlette:
    """The application of one worker process, which reports its start to the parent."""
    server_stop = ServerStop()
    end_with_parent(parent, server_stop.serving)
    app = log_start_failure(partial(_build_reporting, build, states, worker))
    app.state.worker_crashes = states.crashes
    lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def reporting(served: Starlette) -> AsyncIterator[Any]:
        started = False
        try:
            async with lifespan(served) as state:
                started = True
                states.set_ready(worker)
                asyncio.get_running_loop().call_later(SERVER_START_SECONDS, server_stop.set_serving)
                yield state
        except Exception as error:
            if not started:
                states.set_failed(worker, describe_error(error))
            raise

    app.router.lifespan_context = reporting
    return app


def _build_reporting(build: Callable[[], Starlette], states: WorkerStates, worker: int) -> Starlette:
    try:
        return build()
    except Exception as error:
        states.set_failed(worker, describe_error(error))
        raise


def _exit_description(code: int | None) -> str:
    """Description of the end of a process, for messages."""
    if code is None or code >= 0:
        return f"exited with code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"was killed by {name}"
