"""One local expert server: started until it is ready, health-checked, restarted after a delay, stopped.

The functions at the top read and bound its log file. `first_error` finds the line that explains a failure. It is not
the last one: a server of several processes (vLLM) ends with a hundred lines of errors that follow from the first.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Never

import aiohttp

from coe.errors import FleetError
from coe.fleet import probe
from coe.fleet.process import ServerProcess, describe_exit
from coe.fleet.specs import ServerSpec, Timeouts

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
