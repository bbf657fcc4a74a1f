"""Runs commands of `coe` in separate processes, because a serving process must not import what they need.

`Jobs` runs one command at a time. `Reports` caches their results. `PlanSolver` keeps its process for later requests.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, Self

import orjson

from coe.errors import InvalidRequest, JobUnavailable, NotInstalled, pip_install
from coe.settings import Settings

RETRY_AFTER_SECONDS = 5.0
MAX_WAITING = 8
"""Requests for a job at once, including the running one."""
MAX_ERROR_CHARACTERS = 500
"""Characters of a failed job's error output that are passed on."""


class Jobs:
    """Runs one job at a time, each with its own time limit. Leaving the context kills the running one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_closed = True
        if self._process is not None:
            self._process.kill()

    async def run(self, *arguments: str, seconds: float, needs: tuple[str, ...]) -> Any:
        """The JSON that `coe ARGUMENTS --json` prints.

        `needs` are packages that it requires. Raises NotInstalled, or JobUnavailable if it fails, takes longer than
        `seconds`, or too many requests wait.
        """
        check_installed(arguments[0], needs)
        if self._waiting >= MAX_WAITING:
            raise JobUnavailable(f"{MAX_WAITING} requests wait for a job already", retry_after=RETRY_AFTER_SECONDS)
        self._waiting += 1
        try:
            async with self._lock:
                return await asyncio.to_thread(self._run_blocking, arguments, seconds)
        finally:
            self._waiting -= 1

    def _run_blocking(self, arguments: tuple[str, ...], seconds: float) -> Any:
        verb = f"coe {arguments[0]}"
        with start_command(self._settings, *arguments, "--json", stdin=subprocess.DEVNULL) as process:
            self._process = process
            if self._is_closed:  # while the process started
                process.kill()
            try:
                output, errors = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                message = f"`{verb}` took more than {seconds:g} s and was stopped; run it on the command line"
                raise JobUnavailable(message, retry_after=RETRY_AFTER_SECONDS) from None
            finally:
                process.kill()
                self._process = None
        try:
            if process.returncode == 0:
                return orjson.loads(output)
        except orjson.JSONDecodeError:
            errors = b"it printed no JSON"
        raise JobUnavailable(f"`{verb}` failed: {error_tail(errors)}", retry_after=RETRY_AFTER_SECONDS)


REPORT_SECONDS = 120.0
"""Time limit of the job of a report."""
CACHE_SECONDS = 60.0
"""Time for which a report is cached, since each one reads the log."""
MAX_REPORTS = 12
"""Reports with different arguments that are cached at once."""


class Reports:
    """Caches the reports of jobs. Concurrent requests for one report share its job; failures are not cached."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._tasks: dict[tuple[str, ...], tuple[asyncio.Task[tuple[float, Any]], float]] = {}

    async def get(self, *arguments: str, needs: tuple[str, ...] = ()) -> tuple[float, Any]:
        """Return the Unix time of the report, and the report of `coe ARGUMENTS`. Raises the errors of `Jobs.run`."""
        now = time.monotonic()
        task, began = self._tasks.pop(arguments, (None, 0.0))
        if task is None or (task.done() and (_failed(task) or now - began >= CACHE_SECONDS)):
            task, began = asyncio.create_task(self._compute(arguments, needs), name=f"coe-{arguments[0]}"), now
            while len(self._tasks) >= MAX_REPORTS:
                del self._tasks[next(iter(self._tasks))]
        self._tasks[arguments] = task, began
        return await asyncio.shield(task)  # a client that disconnects does not cancel it for others

    async def _compute(self, arguments: tuple[str, ...], needs: tuple[str, ...]) -> tuple[float, Any]:
        found = await self._jobs.run(*arguments, seconds=REPORT_SECONDS, needs=needs)
        return time.time(), found


def _failed(task: asyncio.Task[Any]) -> bool:
    """True for a task that ended without a result; a cancelled one has no exception."""
    return task.cancelled() or task.exception() is not None


def check_installed(verb: str, needs: tuple[str, ...]) -> None:
    """Raises NotInstalled, with the remedy, if a package is missing."""
    if missing := [name for name in needs if find_spec(name) is None]:
        raise NotInstalled(
            f"`coe {verb}` needs {', '.join(missing)}, which is not installed where this gateway runs; "
            f"{pip_install('train')} there, or run it elsewhere"
        )


def start_command(settings: Settings, *arguments: str, stdin: int) -> subprocess.Popen[bytes]:
    """Starts `coe ARGUMENTS` with the gateway's declaration and state, at low priority. Call it in a thread, since a
    fork takes time."""
    nice = ("nice", "-n", "10") if shutil.which("nice") else ()
    return subprocess.Popen(  # noqa: S603  commands and existing versions only
        [*nice, sys.executable, "-P", "-m", "coe.cli", *arguments, "--config", str(settings.config)],
        env={**os.environ, "COE_HOME": str(settings.home)},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def error_tail(errors: bytes) -> str:
    """The end of a process's error output."""
    lines = errors.decode(errors="replace").strip().splitlines()
    return " ".join(lines[-3:])[-MAX_ERROR_CHARACTERS:] or "it printed no error"


SOLVE_TIMEOUT_SECONDS = 20.0
"""Time limit of one request, including the start of the process."""
IDLE_SECONDS = 60.0
"""Time after a request until the process is ended."""
SOLVER_RETRY_SECONDS = 1.0


class PlanSolver:
    """Solves plans under other budgets in one child process, one request at a time.

    A slider in the dashboard sends many requests. Of those that wait, the newest is solved and the others are refused.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = asyncio.Lock()
        self._newest = 0
        self._waiting = 0
        self._key = ("", "")
        self._process: subprocess.Popen[bytes] | None = None
        self._is_overdue = False
        """True once the time limit of the current request is reached."""
        self._idle_timer: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        await asyncio.to_thread(self._end_process)

    async def solve(self, version: str, budget: Mapping[str, float | None], *, declared: str = "") -> Any:
        """The plan of a published version under another budget, as `coe solve` prints it.

        A process that was started with another declaration digest than `declared` is replaced. Raises InvalidRequest
        for an impossible budget, NotInstalled, or JobUnavailable if a newer request arrived, or the process fails or
        takes too long.
        """
        check_installed("solve", ("scipy",))
        if self._waiting >= MAX_WAITING:
            raise JobUnavailable(f"{MAX_WAITING} other budgets are being solved", retry_after=SOLVER_RETRY_SECONDS)
        self._newest += 1
        queued = asyncio.ensure_future(self._queued(self._newest, (version, declared), orjson.dumps(budget) + b"\n"))
        answer = await asyncio.shield(queued)  # a client that disconnects must not interrupt the exchange
        if "error" in answer:
            raise InvalidRequest(answer["error"], param="budget", code="budget_impossible")
        return answer["plan"]

    async def _queued(self, number: int, key: tuple[str, str], line: bytes) -> Any:
        self._waiting += 1
        try:
            async with self._lock:
                if number != self._newest:
                    raise JobUnavailable("a newer budget has been requested", retry_after=SOLVER_RETRY_SECONDS)
                if self._idle_timer is not None:
                    self._idle_timer.cancel()
                self._is_overdue = False
                deadline = asyncio.get_running_loop().call_later(SOLVE_TIMEOUT_SECONDS, self._kill)
                try:
                    return await asyncio.to_thread(self._exchange, key, line)
                finally:
                    deadline.cancel()
                    self._idle_timer = asyncio.create_task(self._end_when_idle())
        finally:
            self._waiting -= 1

    async def _end_when_idle(self) -> None:
        await asyncio.sleep(IDLE_SECONDS)
        async with self._lock:
            await asyncio.to_thread(self._end_process)

    def _exchange(self, key: tuple[str, str], line: bytes) -> Any:
        """Blocks until the process has replied or is ended."""
        process = self._process
        if process is None or process.poll() is not None or key != self._key:
            self._end_process()
            process = self._process = start_command(self._settings, "solve", key[0], stdin=subprocess.PIPE)
            self._key = key
        if self._is_overdue:  # it was reached before this thread ran, or while the process started
            process.kill()
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        cause = f"it took more than {SOLVE_TIMEOUT_SECONDS:g} s"
        with suppress(OSError, orjson.JSONDecodeError):
            process.stdin.write(line)
            process.stdin.flush()
            if reply := process.stdout.readline():
                return orjson.loads(reply)
            cause = error_tail(process.stderr.read()) if process.wait() > 0 else cause
        self._end_process()
        raise JobUnavailable(f"`coe solve` gave no plan: {cause}", retry_after=SOLVER_RETRY_SECONDS)

    def _kill(self) -> None:
        self._is_overdue = True
        if self._process is not None:
            self._process.kill()

    def _end_process(self) -> None:
        """Kills the process, which holds no state, and waits for it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(OSError), process:
                pass
