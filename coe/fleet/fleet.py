"""Runs all local expert servers of one service: starts them together, restarts failed ones, stops all of them."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from coe.fleet import probe
from coe.fleet.server import Server
from coe.fleet.specs import ServerSpec, Timeouts
from coe.supervision import supervised


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
