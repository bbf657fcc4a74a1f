"""One local expert server: started until it is ready, health-checked, restarted after a delay, stopped.

The functions at the top read and bound its log file. `first_error` finds the line that explains a failure. It is not
the last one: a server of several processes (vLLM) ends with a hundred lines of errors that follow from the first.

One server process under its supervisor: started without waiting, stopped with all its descendants.

The supervisor ends its server even if `coe up` dies by SIGKILL.

Runs all local expert servers of one service: starts them together, restarts failed ones, stops all of them.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Never, Self

import aiohttp

from coe.errors import FleetError
from coe.fleet import probe, supervisor
from coe.fleet.specs import ServerSpec, Timeouts, is_free
from coe.supervision import supervised

_POLL_INTERVAL = 0.05
"""Seconds between two checks of a child process."""
_KILL_TIMEOUT = 5.0
"""Seconds for the supervisor's SIGKILLs after its grace period."""


class ServerProcess:
    """A started server. Await `stop()` to its end; until then the server may still run.

    Nothing awaits between the fork and the return of the object, so no cancellation can lose a started process.
    """

    def __init__(self, spec: ServerSpec, *, grace: float, keep_log: bool = False) -> None:
        """Starts it, with an empty log unless `keep_log`. Raises FleetError if the port is taken or the start fails."""
        if not is_free(spec.port, host=spec.host):
            raise FleetError(
                f"server {spec.key!r}: port {spec.port} of {spec.host} is in use; "
                "stop the process that listens there, or start again so that another port is chosen"
            )
        self._key, self._grace = spec.key, grace
        command = [sys.executable, "-P", supervisor.__file__, str(os.getpid()), str(grace), *spec.argv]
        try:
            spec.log.parent.mkdir(parents=True, exist_ok=True)
            if not keep_log:
                spec.log.write_bytes(b"")
            with spec.log.open("ab") as log:  # appending, so that truncate_log works under the writer
                self._supervisor = subprocess.Popen(  # noqa: S603  the declared command line
                    command,
                    env=os.environ | dict(spec.env),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches only this process, which stops the servers
                )
        except OSError as error:
            raise FleetError(f"server {spec.key!r} cannot be started: {error}") from error

    @property
    def exit_code(self) -> int | None:
        """None while it runs; 128 + N after signal N."""
        code = self._supervisor.poll()
        return code if code is None or code >= 0 else 128 - code

    async def exited_within(self, seconds: float) -> int | None:
        """The exit code once the server and all its processes have ended; None if it still runs after `seconds`."""
        deadline = time.monotonic() + seconds
        # Polled: asyncio's child watchers depend on the loop, on threads and on other reapers.
        while (code := self.exit_code) is None and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_INTERVAL)
        return code

    async def stop(self) -> None:
        """Ends it and all its descendants: SIGTERM, and SIGKILL after the grace period. Call it again if it was
        cancelled.

        Raises FleetError if even SIGKILL does not end them (a process stuck in the kernel).
        """
        self._supervisor.terminate()
        if await self.exited_within(self._grace + _KILL_TIMEOUT) is None:
            raise FleetError(
                f"server {self._key!r} cannot be ended (process {self._supervisor.pid}); restart the machine"
            )


def describe_exit(code: int) -> str:
    """Describes an exit code in words."""
    if code == 128 + signal.SIGKILL:
        return "was killed by SIGKILL, perhaps because memory ran out"
    if code > 128 and code - 128 in set(signal.Signals):
        return f"was killed by {signal.Signals(code - 128).name}"
    return f"exited with code {code}"


MAX_LOG_BYTES = 10 * 2**20
"""Size at which a log is truncated."""
_KEPT_LOG_BYTES = 2**20
_TAIL_BYTES = 16 * 2**10
MAX_READ_LOG_BYTES = 2**19
"""Bytes of a log that are searched for the error of a failed start."""


def log_tail(path: Path, *, lines: int = 20) -> str:
    """The last `lines` lines that are not blank; empty without a log."""
    if not path.exists():
        return ""
    text = _last_bytes(path, _TAIL_BYTES).decode(errors="replace")
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def log_size(path: Path) -> int:
    """Size in bytes, 0 without a log."""
    return path.stat().st_size if path.exists() else 0


def log_since(path: Path, start: int) -> str:
    """The first MAX_READ_LOG_BYTES written after offset `start`; from the beginning if the log was truncated."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(start if start <= path.stat().st_size else 0)
        return file.read(MAX_READ_LOG_BYTES).decode(errors="replace")


def truncate_log(path: Path, *, limit: int = MAX_LOG_BYTES, keep: int = _KEPT_LOG_BYTES) -> None:
    """Truncates a log longer than `limit` bytes to its last `keep`, in place.

    The server keeps writing through its open descriptor, which appends and so follows the truncation. What it writes
    between the read and the truncation is lost.
    """
    if not path.exists() or path.stat().st_size <= limit:
        return
    end = _last_bytes(path, keep)
    os.truncate(path, 0)
    with path.open("ab") as file:
        file.write(end)


def _last_bytes(path: Path, log_size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - log_size))
        return file.read(log_size)


MAX_ERROR_CHARACTERS = 600
"""Characters of an error that are shown."""
_PREFIX = re.compile(r"^(?:\([^)]*\) )*(?:ERROR [^]]*\] ?)?")
_EXCEPTION = re.compile(r"(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt): \S.*")
_USAGE_ERROR = re.compile(r"(?:\S+: )?error: (\S.*)")
_VALIDATION_HEADING = re.compile(r"\d+ validation errors? for ")
"""Pydantic's; the reason is in the next line."""


def first_error(log: str) -> str:
    """The first error in a log, in one line; empty if none is recognised."""
    lines = [_PREFIX.sub("", line).strip() for line in log.splitlines()]
    for number, line in enumerate(lines):
        if usage := _USAGE_ERROR.fullmatch(line):
            return usage[1][:MAX_ERROR_CHARACTERS]
        if _EXCEPTION.fullmatch(line):
            following = lines[number + 1] if _VALIDATION_HEADING.search(line) and number + 1 < len(lines) else ""
            return (following or line)[:MAX_ERROR_CHARACTERS]
    return ""


async def restart_on_failure(
    wait_for_failure: Callable[[], Awaitable[str]],
    *,
    stop: Callable[[], Awaitable[None]],
    start: Callable[[], Awaitable[None]],
    timeouts: Timeouts,
    report: Callable[[str, float], None],
) -> Never:
    """Stops and starts a server again whenever it fails, after growing delays. `report` receives the failure and the
    delay. Ends by cancellation only."""
    delay = 0.0
    while True:
        ready = time.monotonic()
        failure = await wait_for_failure()
        up = time.monotonic() - ready
        while failure:
            await stop()
            delay = timeouts.restart_delay(delay, up=up)
            report(failure, delay)
            await asyncio.sleep(delay)
            up, failure = 0.0, ""
            try:
                await start()
            except FleetError as error:
                failure = f"did not come back ({str(error).splitlines()[0]})"


_PROBE_INTERVAL = 0.1


class Server:
    """Runs `spec`. Call `start`, then `watch`; `stop` ends it at any point, once nothing else awaits these."""

    def __init__(
        self, spec: ServerSpec, *, session: aiohttp.ClientSession, report: Callable[[str], None], timeouts: Timeouts
    ) -> None:
        self.spec = spec
        self._name = f"server {spec.key!r}"
        self._session = session
        self._report = report
        self._timeouts = timeouts
        self._process: ServerProcess | None = None
        self._log_start = 0

    @property
    def running(self) -> bool:
        """True while its process runs."""
        return self._process is not None and self._process.exit_code is None

    async def start(self, *, keep_log: bool = False) -> None:
        """Start the server and wait until it is ready. Raises FleetError; the caller must call `stop` even then."""
        begin = time.monotonic()
        self._log_start = log_size(self.spec.log) if keep_log else 0
        self._process = ServerProcess(self.spec, grace=self._timeouts.grace, keep_log=keep_log)
        try:
            async with asyncio.timeout(self.spec.ready_timeout):
                await self._wait_until_ready(self._process)
        except TimeoutError:
            raise self._failure(f"gave no answer within {self.spec.ready_timeout:g} s") from None
        self._report(f"{self._name} is ready after {time.monotonic() - begin:.1f} s")

    async def _wait_until_ready(self, process: ServerProcess) -> None:
        while not await probe.is_ready(self.spec, session=self._session):
            truncate_log(self.spec.log)
            code = await process.exited_within(_PROBE_INTERVAL)
            if code is not None:
                raise self._failure(f"{describe_exit(code)} before it was ready")

    def _failure(self, what: str) -> FleetError:
        spec = self.spec
        why = first_error(log_since(spec.log, self._log_start))
        return FleetError(
            f"{self._name} {what}{why and f': {why}'}\nlast lines of {spec.log}:\n{log_tail(spec.log) or '(empty)'}\n"
            f"fix the cause, or run it by hand: {shlex.join(spec.argv)}"
        )

    async def watch(self) -> Never:
        """Restarts the server whenever it dies or stops answering, and reports each event. Ends by cancellation
        only."""
        await restart_on_failure(
            self.wait_for_failure,
            stop=self.stop,
            start=partial(self.start, keep_log=True),
            timeouts=self._timeouts,
            report=lambda failure, delay: self._report(
                f"{self._name} {failure}; restarting in {delay:g} s (log: {self.spec.log})"
            ),
        )

    async def wait_for_failure(self) -> str:
        """Waits until the server dies or stops answering, and returns a description. Call it after `start`."""
        assert self._process is not None, "wait_for_failure() follows start()"
        timeouts, missed_checks = self._timeouts, 0
        while missed_checks < timeouts.max_missed_checks:
            code = await self._process.exited_within(timeouts.check_interval)
            if code is not None:
                return describe_exit(code)
            truncate_log(self.spec.log)
            alive = await probe.is_alive(self.spec, session=self._session, time_limit=timeouts.check_timeout)
            missed_checks = 0 if alive else missed_checks + 1
        return f"failed {missed_checks} health checks in a row"

    async def stop(self) -> None:
        """Ends it and every process that it started. May be repeated."""
        if self._process is not None:
            await self._process.stop()
            self._process = None


class RunningServers(ABC):
    """Servers that run for the length of an `async with` block.

    Leaving, a failure or a cancellation ends every process that they started before control returns.
    """

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await run_to_completion(self._close())
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await run_to_completion(self._close())

    @abstractmethod
    async def _open(self) -> None:
        """Start the servers. Raises FleetError."""

    @abstractmethod
    async def _close(self) -> None:
        """End the servers, also those of an `_open` that failed."""


class Fleet(RunningServers):
    """`async with Fleet(specs, report=print):` runs the servers for the length of the block.

    Entering starts all servers in parallel and returns once each has answered with a token, or raises FleetError with
    the end of the failed server's log. Inside, a server that dies or stops answering is restarted on the same port;
    `report` receives one line for each event. Leaving, a failure or a cancellation ends every process that the servers
    started, however deep and in whatever session, before control returns; a cancellation during this time waits (at
    most the grace period of `timeouts` and a few seconds). `supervisor.py` covers the case that this process is killed.
    Enter it in a thread that lives as long as the block.
    """

    def __init__(
        self, specs: Sequence[ServerSpec], *, report: Callable[[str], None], timeouts: Timeouts | None = None
    ) -> None:
        self._specs = specs
        self._report = report
        self._timeouts = timeouts or Timeouts()
        self._watchers: list[asyncio.Task[Any]] = []
        self._servers: list[Server] = []

    async def _open(self) -> None:
        self._session = probe.open_probe_session()
        self._servers = [
            Server(spec, session=self._session, report=self._report, timeouts=self._timeouts) for spec in self._specs
        ]
        await run_together(server.start() for server in self._servers)
        self._watchers = [supervised(server.watch, f"watch-{server.spec.key}") for server in self._servers]

    def server(self, key: str) -> Server:
        return next(server for server in self._servers if server.spec.key == key)

    async def _close(self) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        outcomes = await asyncio.gather(*self._watchers, return_exceptions=True)
        outcomes += await asyncio.gather(*(server.stop() for server in self._servers), return_exceptions=True)
        await self._session.close()
        for outcome in outcomes:  # raised last, once all are stopped
            if isinstance(outcome, Exception):
                raise outcome


async def run_together(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Runs all at once. The first failure cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def run_to_completion(work: Coroutine[Any, Any, None]) -> None:
    """Finishes `work` even if cancelled; raises the cancellation afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled:
        raise cancelled
