"""The gateway's processes: a parent, and workers that share its listening socket.

On SIGTERM or SIGINT the parent makes the workers drain and waits until they have written their records. A second signal
kills all processes at once. On SIGHUP the workers reload. A worker that crashes, or hangs and is killed, starts again
after a delay of its own; the other workers continue. If no worker ever became ready and all have ended, the gateway
stops with the cause. When the parent has died, even by SIGKILL, the workers end soon, so that the port is free for the
next start.
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
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from ctypes import Array, c_uint64
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from types import FrameType

import uvloop
from starlette.applications import Starlette
from threadpoolctl import threadpool_limits

from coe.errors import Draining, WorkerError
from coe.settings import Settings
from coe.supervision import next_pause
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
    threading.Thread(target=_exit_after_parent, name="coe-parent", daemon=True).start()
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
    """Serve the application until SIGTERM or the end of the parent process. `beat` is called several times a
    second from when it serves."""
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


def _exit_after_parent() -> None:
    """End this process some time after its parent, even if its event loop hangs or has not begun."""
    if (parent := multiprocessing.parent_process()) is None:
        return
    while os.getppid() == parent.pid:
        time.sleep(PARENT_CHECK_SECONDS)
    time.sleep(AFTER_PARENT_SECONDS + WRITE_SECONDS)
    os._exit(1)


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


SHARES_MEMORY = sys.platform == "linux"
"""True if workers are forks, which share the memory that the parent has filled. Libraries of macOS do not work after a
fork."""
FLUSH_SECONDS = 20
"""Time for a worker to write its records after its requests have ended."""
TICK_SECONDS = 0.1
"""Interval in which the parent looks at signals, and at workers that are due to start."""
HANG_SECONDS = 40.0
"""Time without a turn of its event loop after which a worker is killed."""
FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS = 0.5, 30.0
"""Delay from a worker's first crash to its next start, and the longest; each further crash doubles it."""

_CONTEXT = multiprocessing.get_context("fork") if SHARES_MEMORY else multiprocessing.get_context("spawn")


def serve(build: Build, settings: Settings, *, listener: socket.socket) -> None:
    """Serve the application that `build` makes, once in every worker, until SIGINT or SIGTERM. Raises WorkerError if no
    worker could start."""
    logging.config.dictConfig(logging_config(settings))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS refuses an infinite one
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _Parent(build, settings, listener).serve()


class _Parent:
    """The loop over the workers."""

    def __init__(self, build: Build, settings: Settings, listener: socket.socket) -> None:
        self._pid, self._listener, self._is_stopping = os.getpid(), listener, False
        self._time_to_end = settings.drain + FINISH_SECONDS + FLUSH_SECONDS
        self._beats = RawArray(c_uint64, settings.workers)
        """A count for each worker, which grows while its event loop runs; 0 until it serves."""
        self._silence = dict.fromkeys(range(settings.workers), (0, 0.0))
        """The latest number of beats of each worker, and for how many seconds it has not grown."""
        self._checked = time.monotonic()
        self._has_served = False
        self._target = partial(run_worker, build, settings, listener=listener, beats=self._beats)
        self._workers: dict[int, BaseProcess] = {}
        self._started: dict[int, float] = {}
        self._due = dict.fromkeys(range(settings.workers), 0.0)
        """Times at which workers start, by their numbers. All times are those of the monotonic clock."""
        self._delays = dict.fromkeys(range(settings.workers), 0.0)
        """Delays after the latest crashes."""
        self._crashes = Counter[int]()

    def serve(self) -> None:
        """Start the workers and supervise them until a signal. Raises WorkerError if none could start."""
        signal.signal(signal.SIGHUP, self._on_reload)
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        try:
            while not self._is_stopping:
                for number, due in tuple(self._due.items()):
                    if due <= time.monotonic() and (self._has_served or not self._delays[number]):
                        self._start(number)
                wait([worker.sentinel for worker in self._workers.values()], TICK_SECONDS)
                self._has_served |= any(self._beats)
                passed, self._checked = time.monotonic() - self._checked, time.monotonic()
                for number, worker in tuple(self._workers.items()):
                    if worker.exitcode is not None and not self._is_stopping:
                        self._restart_later(number)
                    elif self._is_hung(number, passed):
                        _log.error("%s hangs for %d s and is killed", _name(number, worker), HANG_SECONDS)
                        worker.kill()
                        self._silence[number] = 0, 0.0
        finally:
            self._listener.close()  # otherwise new connections would wait in its queue
            self._stop_workers()
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # at exit Python restores the default: to end

    def _on_stop(self, number: int, _: FrameType | None) -> None:
        if os.getpid() == self._pid and not self._is_stopping:
            self._is_stopping = True
            return
        if os.getpid() == self._pid:
            for worker in tuple(self._workers.values()):
                worker.kill()
        os._exit(128 + number)  # also a fork that has not set its own handlers yet

    def _on_reload(self, *_: object) -> None:
        for worker in tuple(self._workers.values()) if os.getpid() == self._pid else ():
            if worker.pid is not None and worker.exitcode is None:
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGHUP)

    def _is_hung(self, number: int, passed: float) -> bool:
        """Check the beats of a worker after `passed` seconds, of which few count, so that workers can beat after a
        pause of all processes."""
        beats, (before, silent) = self._beats[number], self._silence[number]
        self._silence[number] = beats, silent + min(passed, 2 * TICK_SECONDS) if 0 < beats == before else 0.0
        return self._silence[number][1] >= HANG_SECONDS

    def _start(self, number: int) -> None:
        del self._due[number]
        self._beats[number] = 0
        self._started[number] = time.monotonic()
        arguments = {"number": number, "crashes": self._crashes[number]}
        worker = _CONTEXT.Process(target=self._target, kwargs=arguments, daemon=True)
        worker.start()
        self._workers[number] = worker

    def _restart_later(self, number: int) -> None:
        """Note that a worker has ended. Raises WorkerError if none has ever served, and none is left."""
        name, code = _name(number, worker := self._workers.pop(number)), worker.exitcode
        known = code is not None and -code in set(signal.Signals)
        why = f"was killed by {signal.Signals(-code).name}" if code and known else f"exited with code {code}"
        self._crashes[number] += 1
        uptime = time.monotonic() - self._started[number]
        delay = next_pause(self._delays[number], ran=uptime, first=FIRST_DELAY_SECONDS, longest=MAX_DELAY_SECONDS)
        self._delays[number], self._due[number] = delay, time.monotonic() + delay
        if not (self._has_served or self._workers):
            cause = f"{name} {why}; see the log above"
            raise WorkerError(f"the gateway stops, because no worker could start: {cause}")
        _log.error("%s %s; the others serve on, and it starts again in %g s", name, why, delay)

    def _stop_workers(self) -> None:
        """Stop the workers, and kill those that have not ended after the time limit."""
        deadline = time.monotonic() + self._time_to_end
        for worker in self._workers.values():
            worker.terminate()
        for number, worker in self._workers.items():
            worker.join(max(0.0, deadline - time.monotonic()))
            if worker.exitcode is None:
                _log.warning("%s has not stopped within %d s and is killed", _name(number, worker), self._time_to_end)
                worker.kill()
                worker.join()


def _name(number: int, worker: BaseProcess) -> str:
    return f"worker {number + 1} (process {worker.pid})"
