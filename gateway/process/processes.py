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
from types import FrameType

from coe.errors import WorkerError
from coe.settings import Settings
from coe.supervision import next_pause
from gateway.observability.logs import logging_config
from gateway.process.signals import DRAIN_SIGNAL, FINISH_SECONDS, RELOAD_SIGNAL
from gateway.process.worker import Build, SharedState, run_worker

SHARES_MEMORY = sys.platform == "linux"
"""True if workers are forks, which share the memory that the parent has filled. Libraries of macOS do not work after a
fork."""
FLUSH_SECONDS = 20
"""Time for a worker to write its records after its requests have ended."""
TICK_SECONDS = 0.1
"""Interval in which the parent looks at signals, and at workers that are due to start."""
CHECK_SECONDS, MAX_SILENT_CHECKS = 15.0, 2
"""A worker hangs if it has not beaten before this many checks in succession: for 30 to 45 s. Checks count and not
seconds, so that the workers can beat after a pause of the whole gateway."""
FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS = 0.5, 30.0
"""Delay from a worker's first crash to its next start, and the longest; each further crash doubles it."""

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
    `at_intervals` every CHECK_SECONDS. Raises WorkerError if no worker could start."""
    logging.config.dictConfig(logging_config(settings))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS refuses an infinite one
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    parent = _Parent(build, settings, listener=listener, at_intervals=at_intervals)
    parent.serve()
    if parent.failure:
        raise WorkerError(parent.failure)


class Worker:
    """A worker process. It starts when it is made."""

    _beats = _silent_checks = 0

    def __init__(self, number: int, target: Callable[..., None]) -> None:
        self.number = number
        self.started = time.monotonic()
        self.process = _CONTEXT.Process(target=target, kwargs={"number": number}, daemon=True)
        self.process.start()

    @property
    def name(self) -> str:
        return f"worker {self.number + 1} (process {self.process.pid})"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.process.pid is not None and self.process.exitcode is None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def hangs(self, beats: int) -> bool:
        """Check its count of beats; 0 while it starts, which is not watched."""
        self._silent_checks = self._silent_checks + 1 if 0 < beats == self._beats else 0
        self._beats = beats
        return self._silent_checks >= MAX_SILENT_CHECKS


class _Parent:
    """The loop over the workers."""

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
        self._pid, self._lame_duck = os.getpid(), settings.drain
        self._listener, self._at_intervals = listener, at_intervals
        self._shared = SharedState(settings.workers)
        self._start = partial(run_worker, build, settings, listener=listener, shared=self._shared, parent=self._pid)
        self._workers: dict[int, Worker] = {}
        self._due = dict.fromkeys(range(settings.workers), 0.0)
        """Times at which workers start, by their numbers."""
        self._delays = dict.fromkeys(range(settings.workers), 0.0)
        """Delays after the latest crashes."""
        self._ever_ready = False
        self._next_check = time.monotonic() + CHECK_SECONDS
        self._stop_at: float | None = None
        """Time at which the workers stop; None before the drain. All times are those of the monotonic clock."""

    def serve(self) -> None:
        """Start the workers and supervise them until a signal, or until none could start."""
        signal.signal(DRAIN_SIGNAL, signal.SIG_IGN)  # a worker that is starting must not end on it
        signal.signal(RELOAD_SIGNAL, self._on_reload)
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        while not self.failure and (self._stop_at is None or time.monotonic() < self._stop_at):
            if self._stop_at is None:
                self._start_due()
            self._check()
            wait([worker.process.sentinel for worker in self._workers.values()], TICK_SECONDS)
        self._listener.close()  # otherwise new connections would wait in its queue
        self._stop_workers()
        signal.signal(RELOAD_SIGNAL, signal.SIG_IGN)  # at exit Python restores the default of a handled signal: to end

    def _on_stop(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a fork that has not set its own handlers yet
            os._exit(128 + number)
        if self._stop_at is not None:
            self._signal_workers(signal.SIGKILL)
            os._exit(128 + number)
        self._stop_at = time.monotonic() + self._lame_duck
        self._signal_workers(DRAIN_SIGNAL)

    def _on_reload(self, *_: object) -> None:
        if os.getpid() == self._pid:
            self._signal_workers(RELOAD_SIGNAL)

    def _signal_workers(self, number: signal.Signals) -> None:
        for worker in tuple(self._workers.values()):
            worker.signal(number)

    def _start_due(self) -> None:
        """Start the workers that are due. Crashed ones restart only after one was ready."""
        for number, due in tuple(self._due.items()):
            if due <= time.monotonic() and (self._ever_ready or not self._delays[number]):
                del self._due[number]
                self._workers[number] = worker = Worker(number, self._start)
                if self._stop_at is not None:  # a signal to stop arrived during the start
                    worker.signal(DRAIN_SIGNAL)

    def _check(self) -> None:
        """Note the workers that have ended, and kill those that hang."""
        beats = self._shared.beats
        self._ever_ready = self._ever_ready or any(beats)
        for worker in [one for one in self._workers.values() if one.process.exitcode is not None]:
            del self._workers[worker.number]
            if self._stop_at is None:
                self._crashed(worker)
        if self._stop_at is not None or time.monotonic() < self._next_check:
            return
        self._next_check = time.monotonic() + CHECK_SECONDS
        for worker in self._workers.values():
            if worker.hangs(beats[worker.number]):
                _log.error("%s has not answered for %g s and is killed", worker.name, MAX_SILENT_CHECKS * CHECK_SECONDS)
                worker.signal(signal.SIGKILL)
        if self._at_intervals is not None:
            self._at_intervals()

    def _crashed(self, worker: Worker) -> None:
        number, shared, exit_description = worker.number, self._shared, _exit_description(worker.process.exitcode)
        shared.crashes[number] += 1
        shared.beats[number] = 0
        uptime = time.monotonic() - worker.started
        delay = next_pause(self._delays[number], ran=uptime, first=FIRST_DELAY_SECONDS, longest=MAX_DELAY_SECONDS)
        self._delays[number], self._due[number] = delay, time.monotonic() + delay
        if self._ever_ready or self._workers:
            _log.error("%s %s; the others serve on, and it starts again in %g s", worker.name, exit_description, delay)
        else:
            why = f"{worker.name} {exit_description}; see the log above"
            self.failure = f"the gateway stops, because no worker could start: {why}"

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
