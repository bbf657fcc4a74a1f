"""Solves the plan in use under another budget, in a process beside the gateway that stays for the next request."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import orjson

from coe.errors import InvalidRequest, JobUnavailable
from coe.settings import Settings
from gateway.process.jobs import MAX_WAITING, check_installed, error_tail, start_command

SOLVE_TIMEOUT_SECONDS = 20.0
"""Time limit of one request, including the start of the process."""
IDLE_SECONDS = 60.0
"""Time after a request until the process is ended."""
RETRY_AFTER_SECONDS = 1.0


class PlanSolver:
    """One process, one request at a time. A user who moves a slider sends many: of those that wait, the newest is
    solved and the others are refused."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = asyncio.Lock()
        self._newest = 0
        self._waiting = 0
        self._key = ("", "")
        self._process: subprocess.Popen[bytes] | None = None
        self._idle_timer: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
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
            raise JobUnavailable(f"{MAX_WAITING} other budgets are being solved", retry_after=RETRY_AFTER_SECONDS)
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
                    raise JobUnavailable("a newer budget was requested meanwhile", retry_after=RETRY_AFTER_SECONDS)
                if self._idle_timer is not None:
                    self._idle_timer.cancel()
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
        raise JobUnavailable(f"`coe solve` gave no plan: {cause}", retry_after=RETRY_AFTER_SECONDS)

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _end_process(self) -> None:
        """Kills the process, which holds no state, and waits for it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(OSError), process:
                pass
