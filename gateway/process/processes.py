"""The gateway's processes: a parent, and workers that share its listening socket.

The parent handles signals from outside; a worker acts only on signals from the parent. On SIGTERM or SIGINT the parent
makes the workers drain (SIGUSR1, see `gateway/process/signals.py`), waits for the lame duck period, and stops them: a
worker closes the listener and idle connections, waits for running requests and closes the application, which writes the
records. A second signal kills all processes at once. On SIGHUP the workers reload.

A worker that crashes starts again after a delay of its own; the other workers continue. One whose event loop hangs is
killed first. If no worker ever became ready and all have ended, the gateway stops with the cause. Workers end when the
parent dies (`gateway/process/signals.py`).
"""

from __future__ import annotations

import logging
import logging.config
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType

from coe.errors import WorkerError
from coe.settings import Settings
from gateway.observability.logs import logging_config
from gateway.process.signals import DRAIN_SIGNAL, FINISH_SECONDS, RELOAD_SIGNAL
from gateway.process.worker import Build, run_worker
from gateway.process.worker_states import CHECK_SECONDS, MAX_SILENT_CHECKS, RespawnSchedule, Watchdog, WorkerStates

SHARES_MEMORY = sys.platform == "linux"
"""True if workers are forks, which share the memory that the parent has filled. Libraries of macOS do not work after a
fork."""
FLUSH_SECONDS = 20
"""Time for a worker to write its records after its requests have ended."""
START_CHECK_SECONDS = 0.5
"""Interval of checks for a first ready worker. Crashed workers restart only after one was ready."""

_CONTEXT = multiprocessing.get_context("fork") if SHARES_MEMORY else multiprocessing.get_context("spawn")
_log = logging.getLogger("gateway")


def serve(
    build: Build,
    settings: Settings,
    *,
    listener: socket.socket,
    at_intervals: Callable[[], None] | None = None,
) -> None:
    """Serves the application that `build` makes, once in every worker, until SIGINT or SIGTERM. The parent calls
    `at_intervals` at least every CHECK_SECONDS. Raises WorkerError if no worker could start."""
    logging.config.dictConfig(logging_config(settings))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS refuses an infinite one
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    processes = _Processes(build, settings, listener=listener, at_intervals=at_intervals)
    processes.serve()
    if processes.failure:
        raise WorkerError(processes.failure)


class _Worker:
    """A started worker process."""

    def __init__(self, number: int, process: BaseProcess) -> None:
        self.number = number
        self.process = process
        self.started = time.monotonic()
        process.start()

    @property
    def name(self) -> str:
        return f"worker {self.number + 1} (process {self.process.pid})"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.process.pid is not None and self.process.exitcode is None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)


class _Processes:
    """The parent's loop over its workers."""

    def __init__(
        self,
        build: Build,
        settings: Settings,
        *,
        listener: socket.socket,
        at_intervals: Callable[[], None] | None,
    ) -> None:
        self.failure = ""
        """The reason why no worker could start; empty otherwise."""
        self._pid = os.getpid()
        self._states = WorkerStates(settings.workers)
        self._target = partial(run_worker, build, settings, listener=listener, states=self._states, parent=self._pid)
        self._listener = listener
        self._workers: dict[int, _Worker] = {}
        self._count = settings.workers
        self._respawns = RespawnSchedule()
        self._watchdog = Watchdog(self._states)
        self._lame_duck = settings.drain
        self._at_intervals = at_intervals
        self._stop_at: float | None = None
        """Time at which the workers stop, by the monotonic clock; None before the drain."""
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)

    def serve(self) -> None:
        """Start the workers and supervise them until a signal, or until none could start."""
        signal.signal(DRAIN_SIGNAL, signal.SIG_IGN)  # a worker that is starting must not end on it
        signal.signal(RELOAD_SIGNAL, self._on_reload)
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        for number in range(self._count):
            self._start(number)
        while not self.failure and (self._stop_at is None or time.monotonic() < self._stop_at):
            self._wait()
            if self._at_intervals is not None:
                self._at_intervals()
            self._check_workers()
        self._listener.close()  # otherwise new connections would wait in its queue
        self._stop_workers()
        signal.signal(RELOAD_SIGNAL, signal.SIG_IGN)  # at exit Python restores the default of a handled signal: to end

    def _on_stop(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a fork that has not set its own handlers yet
            os._exit(128 + number)
        if self._stop_at is not None:
            for worker in self._workers.values():
                worker.signal(signal.SIGKILL)
            os._exit(128 + number)
        self._stop_at = time.monotonic() + self._lame_duck
        self._signal_workers(DRAIN_SIGNAL)
        self._wake_up()

    def _on_reload(self, *_: object) -> None:
        if os.getpid() == self._pid:
            self._signal_workers(RELOAD_SIGNAL)

    def _signal_workers(self, number: signal.Signals) -> None:
        for worker in tuple(self._workers.values()):
            worker.signal(number)

    # ------------------------------------------------------------------------------------------- waiting

    def _wake_up(self) -> None:
        with suppress(BlockingIOError):  # the pipe is full, so it wakes up in any case
            os.write(self._wake, b"!")

    def _wait(self) -> None:
        """Wait for a signal, the end of a worker, or the next check."""
        ended = [worker.process.sentinel for worker in self._workers.values()]
        if self._woken in wait([self._woken, *ended], self._pause()):
            os.read(self._woken, 64)

    def _pause(self) -> float:
        """Seconds until the next check."""
        if self._stop_at is not None:
            return max(0.0, self._stop_at - time.monotonic())
        pause = self._watchdog.wait()
        if (respawn := self._respawns.wait()) is None:
            return pause
        return min(pause, respawn if self._states.ever_ready else START_CHECK_SECONDS)

    # ------------------------------------------------------------------------------------------- crashes

    def _check_workers(self) -> None:
        for number in self._watchdog.hanging() if self._stop_at is None else ():
            hanging = self._workers[number]
            _log.error("%s has not answered for %g s and is killed", hanging.name, MAX_SILENT_CHECKS * CHECK_SECONDS)
            hanging.signal(signal.SIGKILL)
        for worker in [one for one in self._workers.values() if one.process.exitcode is not None]:
            del self._workers[worker.number]
            if self._stop_at is None:
                self._crashed(worker)
        if self._stop_at is None and not self.failure and self._states.ever_ready:
            for number in self._respawns.take_due():
                self._start(number)

    def _crashed(self, worker: _Worker) -> None:
        self._states.count_crash(worker.number)
        exit_description = _exit_description(worker.process.exitcode)
        if not (self._states.ever_ready or self._workers):
            cause = self._states.cause(worker.number) or "see the log above"
            self.failure = (
                f"the gateway stops, because no worker could start: {worker.name} {exit_description}; {cause}"
            )
            return
        delay = self._respawns.crashed(worker.number, uptime=time.monotonic() - worker.started)
        _log.error("%s %s; the others serve on, and it starts again in %g s", worker.name, exit_description, delay)

    def _start(self, number: int) -> None:
        process = _CONTEXT.Process(target=self._target, kwargs={"number": number}, daemon=True)
        self._workers[number] = worker = _Worker(number, process)
        if self._stop_at is not None:  # a signal to stop arrived during the start
            worker.signal(DRAIN_SIGNAL)

    def _stop_workers(self) -> None:
        """Stop the workers, and kill those that have not ended after the time limit."""
        self._signal_workers(signal.SIGTERM)
        limit = round(FINISH_SECONDS) + FLUSH_SECONDS
        deadline = time.monotonic() + limit
        for worker in self._workers.values():
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.exitcode is None:
                _log.warning("%s has not stopped within %d s and is killed", worker.name, limit)
                worker.process.kill()
                worker.process.join()


def _exit_description(code: int | None) -> str:
    """Description of the end of a process, for messages."""
    if code is None or code >= 0:
        return f"exited with code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"was killed by {name}"
