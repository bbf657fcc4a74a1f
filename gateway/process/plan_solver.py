"""The plan in use under other budgets, solved in a process beside the gateway that waits a while for the next one."""

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
from gateway.process.jobs import MOST_WAITING, check_installed, last_words, start

SECONDS = 20.0
"""For one question, the start of the process included."""
IDLE = 60.0
"""Seconds after a question until the process is ended."""
RETRY_AFTER = 1.0


class PlanSolver:
    """One process, one question at a time. Whoever moves a slider asks often: of those that wait the newest is
    answered, and the rest are told so."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turn = asyncio.Lock()
        self._asked = 0
        self._waiting = 0
        self._key = ("", "")
        self._process: subprocess.Popen[bytes] | None = None
        self._end: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._end is not None:
            self._end.cancel()
        await asyncio.to_thread(self._drop)

    async def solve(self, version: str, budget: Mapping[str, float | None], *, declared: str = "") -> Any:
        """The plan of a published version under another budget, as `coe solve` tells it. A process that began with
        another digest of the declaration than `declared` is replaced. Raises InvalidRequest for one
        that cannot be kept, NotInstalled, or JobUnavailable where a newer question came, or it fails or takes too
        long."""
        check_installed("solve", ("scipy",))
        if self._waiting >= MOST_WAITING:
            raise JobUnavailable(f"{MOST_WAITING} other budgets are being solved", retry_after=RETRY_AFTER)
        self._asked += 1
        turn = asyncio.ensure_future(self._in_turn(self._asked, (version, declared), orjson.dumps(budget) + b"\n"))
        answer = await asyncio.shield(turn)  # one who leaves must not leave the process half asked
        if "error" in answer:
            raise InvalidRequest(answer["error"], param="budget", code="budget_impossible")
        return answer["plan"]

    async def _in_turn(self, own: int, key: tuple[str, str], line: bytes) -> Any:
        self._waiting += 1
        try:
            async with self._turn:
                if own != self._asked:
                    raise JobUnavailable("a newer budget was asked for meanwhile", retry_after=RETRY_AFTER)
                if self._end is not None:
                    self._end.cancel()
                deadline = asyncio.get_running_loop().call_later(SECONDS, self._kill)
                try:
                    return await asyncio.to_thread(self._exchange, key, line)
                finally:
                    deadline.cancel()
                    self._end = asyncio.create_task(self._retire())
        finally:
            self._waiting -= 1

    async def _retire(self) -> None:
        await asyncio.sleep(IDLE)
        async with self._turn:
            await asyncio.to_thread(self._drop)

    def _exchange(self, key: tuple[str, str], line: bytes) -> Any:
        """Blocks until the process has answered, or is ended."""
        process = self._process
        if process is None or process.poll() is not None or key != self._key:
            self._drop()
            process = self._process = start(self._settings, "solve", key[0], stdin=subprocess.PIPE)
            self._key = key
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        why = f"it took more than {SECONDS:g} s"
        with suppress(OSError, orjson.JSONDecodeError):
            process.stdin.write(line)
            process.stdin.flush()
            if told := process.stdout.readline():
                return orjson.loads(told)
            why = last_words(process.stderr.read()) if process.wait() > 0 else why
        self._drop()
        raise JobUnavailable(f"`coe solve` gave no plan: {why}", retry_after=RETRY_AFTER)

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _drop(self) -> None:
        """End the process, which has nothing to lose, and wait for it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(OSError), process:
                pass
