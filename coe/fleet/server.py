"""One local expert server over its life: made ready, watched, restarted after a pause, stopped.

Finds, in the log of a server that failed, the line that says why.

It is not the last one: a server of several processes (vLLM) ends with the errors that the first one led to, a hundred
lines further down.

The log file of one server: its last lines, and a bound on its size.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Never

import aiohttp

from coe.errors import FleetError
from coe.fleet import probe
from coe.fleet.process import ServerProcess, describe_exit
from coe.fleet.specs import ServerSpec
from coe.fleet.timeouts import Timeouts
from coe.fleet.vllm.client import ADAPTERS_MAY_CHANGE, Vllm

LIMIT = 10 * 2**20
"""Bytes after which a log is cut."""
_KEEP = 2**20
_TAIL = 16 * 2**10


def tail(path: Path, *, lines: int = 20) -> str:
    """The last `lines` lines that are not blank; empty when there is no log."""
    if not path.exists():
        return ""
    text = _last(path, _TAIL).decode(errors="replace")
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def size(path: Path) -> int:
    """Bytes, 0 where there is no log yet."""
    return path.stat().st_size if path.exists() else 0


def since(path: Path, start: int, *, limit: int = 2**19) -> str:
    """What was written after the first `start` bytes, at most its first `limit`; from the beginning where the log has
    been cut meanwhile."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(start if start <= path.stat().st_size else 0)
        return file.read(limit).decode(errors="replace")


def cap(path: Path, *, limit: int = LIMIT, keep: int = _KEEP) -> None:
    """Cut a log longer than `limit` bytes to its last `keep`, in place.

    The server goes on writing through its open descriptor; that descriptor appends, so it follows the cut. What it
    writes between the read and the cut is lost.
    """
    if not path.exists() or path.stat().st_size <= limit:
        return
    kept = _last(path, keep)
    os.truncate(path, 0)
    with path.open("ab") as file:
        file.write(kept)


def _last(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read(size)


LONGEST = 600
"""Characters of a cause that are shown."""
_PREFIX = re.compile(r"^(?:\([^)]*\) )*(?:ERROR [^]]*\] ?)?")
_RAISED = re.compile(r"(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt): \S.*")
_USAGE = re.compile(r"(?:\S+: )?error: (\S.*)")
_HEADING = re.compile(r"\d+ validation errors? for ")
"""Pydantic's: the reason stands in the next line."""


def cause(log: str) -> str:
    """The first error that a log tells, in one line; empty where none is recognised."""
    lines = [_PREFIX.sub("", line).strip() for line in log.splitlines()]
    for number, line in enumerate(lines):
        if usage := _USAGE.fullmatch(line):
            return usage[1][:LONGEST]
        if _RAISED.fullmatch(line):
            following = lines[number + 1] if _HEADING.search(line) and number + 1 < len(lines) else ""
            return (following or line)[:LONGEST]
    return ""


_PROBE_EVERY = 0.1


class Server:
    """Runs `spec`. `start`, then `watch`; `stop` ends it at any point of either, once nobody else awaits them."""

    def __init__(
        self, spec: ServerSpec, *, session: aiohttp.ClientSession, say: Callable[[str], None], pace: Timeouts
    ) -> None:
        self.spec = spec
        self._name = f"server {spec.key!r}"
        self._session = session
        self._say = say
        self._pace = pace
        self._process: ServerProcess | None = None
        self._log_begins = 0

    @property
    def running(self) -> bool:
        """Whether it has a process that lives."""
        return self._process is not None and self._process.exit_code is None

    async def start(self, *, keep_log: bool = False) -> None:
        """Start and return once it has answered. Raises FleetError; what was started is then left to `stop`."""
        begin = time.monotonic()
        self._log_begins = size(self.spec.log) if keep_log else 0
        self._process = ServerProcess(self.spec, grace=self._pace.grace, keep_log=keep_log)
        try:
            async with asyncio.timeout(self.spec.ready_timeout):
                await self._until_ready(self._process)
        except TimeoutError:
            raise self._failure(f"gave no answer within {self.spec.ready_timeout:g} s") from None
        self._say(f"{self._name} is ready after {time.monotonic() - begin:.1f} s")

    async def _until_ready(self, process: ServerProcess) -> None:
        while not await probe.answers(self.spec, session=self._session):
            cap(self.spec.log)
            code = await process.exited_within(_PROBE_EVERY)
            if code is not None:
                raise self._failure(f"{describe_exit(code)} before it was ready")

    def _failure(self, what: str) -> FleetError:
        spec = self.spec
        why = cause(since(spec.log, self._log_begins))
        return FleetError(
            f"{self._name} {what}{why and f': {why}'}\nlast lines of {spec.log}:\n{tail(spec.log) or '(empty)'}\n"
            f"mend what they say, or run it by hand: {shlex.join(spec.command)}"
        )

    async def watch(self) -> Never:
        """Restart the server whenever it dies or stops answering, saying each event once. Ends by cancellation only."""
        delay = 0.0
        while True:
            ready = time.monotonic()
            trouble = await self.trouble()
            up = time.monotonic() - ready
            while trouble:
                await self.stop()
                delay = self._pace.backoff.next(delay, up=up)
                self._say(f"{self._name} {trouble}; restarting in {delay:g} s (log: {self.spec.log})")
                await asyncio.sleep(delay)
                up = 0.0
                trouble = await self._trouble_restarting()

    async def trouble(self) -> str:
        """Wait until the server dies or stops answering, and say which. After `start`."""
        assert self._process is not None, "trouble() follows start()"
        misses = 0
        while misses < self._pace.misses:
            code = await self._process.exited_within(self._pace.check_every)
            if code is not None:
                return describe_exit(code)
            cap(self.spec.log)
            alive = await probe.is_alive(self.spec, session=self._session, within=self._pace.check_timeout)
            misses = 0 if alive else misses + 1
        return f"failed {misses} health checks in a row"

    async def _trouble_restarting(self) -> str:
        """Why it did not come back; empty when it did."""
        try:
            await self.start(keep_log=True)
        except FleetError as error:
            return f"did not come back ({str(error).splitlines()[0]})"
        return ""

    async def load(self, adapters: Mapping[str, Path]) -> list[str]:
        """Serve these LoRA folders too, now and after every restart; returns the names that were new. Raises FleetError
        for one that cannot be loaded, which is then not kept."""
        new = {name: folder for name, folder in adapters.items() if self.spec.adapters.get(name) != folder}
        if new and ADAPTERS_MAY_CHANGE not in self.spec.env:
            raise FleetError(
                f"{self._name} cannot load the adapter {next(iter(new))!r}: it was started without LoRA; start again, "
                "or declare `enable-lora: true` in its options from the start"
            )
        for name, folder in new.items():
            await Vllm(self.spec.root, session=self._session).load_adapter(name, folder)
            self.spec = replace(self.spec, adapters={**self.spec.adapters, name: folder})
        return list(new)

    async def unload(self, name: str) -> None:
        """Serve this adapter no longer, now and after every restart. Raises FleetError."""
        await Vllm(self.spec.root, session=self._session).unload_adapter(name)
        kept = {other: folder for other, folder in self.spec.adapters.items() if other != name}
        self.spec = replace(self.spec, adapters=kept)

    async def stop(self) -> None:
        """End it and every process it started. Safe to repeat."""
        if self._process is not None:
            await self._process.stop()
            self._process = None
