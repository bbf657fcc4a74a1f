"""All local expert servers of one service: started together, watched together, gone together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from coe.fleet import probe
from coe.fleet.server import Server
from coe.fleet.specs import ServerSpec
from coe.fleet.timeouts import Timeouts
from coe.supervision import supervised


class Fleet:
    """`async with Fleet(specs, say=print):` runs the servers for the length of the block.

    Entering starts all in parallel and returns when each has given a one-token answer, or raises FleetError with the
    end of the failing server's log. Inside, a server that dies or stops answering is restarted on the same port;
    `say` gets one line for each event. Leaving, failing and being cancelled end every process the servers started,
    however deep and in whatever session, before control goes on; a cancellation meanwhile waits (at most the grace of
    `pace` and a few seconds). See warden.py for what holds when this process is killed. Enter it in a thread
    that lives as long as the block.
    """

    def __init__(
        self, specs: Sequence[ServerSpec], *, say: Callable[[str], None], pace: Timeouts | None = None
    ) -> None:
        self._specs = specs
        self._say = say
        self._pace = pace or Timeouts()
        self._watchers: list[asyncio.Task[Any]] = []
        self._servers: list[Server] = []

    async def __aenter__(self) -> Self:
        self._session = probe.open_session()
        self._servers = [Server(spec, session=self._session, say=self._say, pace=self._pace) for spec in self._specs]
        try:
            await self._start_all()
        except BaseException:
            await to_the_end(self._close())
            raise
        self._watchers = [supervised(server.watch, f"watch-{server.spec.key}") for server in self._servers]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await to_the_end(self._close())

    async def load(self, key: str, adapters: Mapping[str, Path]) -> list[str]:
        """Serve these LoRA folders too, by name, at the server `key`; returns what was new. Raises FleetError."""
        return await self._server(key).load(adapters)

    def superfluous(self, key: str, adapters: Mapping[str, Path]) -> list[str]:
        """The adapters that server `key` serves beyond these."""
        return [name for name in self._server(key).spec.adapters if name not in adapters]

    async def unload(self, key: str, adapters: Mapping[str, Path]) -> list[str]:
        """Serve no others than these any longer; returns what went. Raises FleetError."""
        gone = self.superfluous(key, adapters)
        for name in gone:
            await self._server(key).unload(name)
        return gone

    def _server(self, key: str) -> Server:
        return next(server for server in self._servers if server.spec.key == key)

    async def _start_all(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for server in self._servers:
                    group.create_task(server.start())
        except ExceptionGroup as failures:  # the first failure cancels the others
            raise failures.exceptions[0] from None

    async def _close(self) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        outcomes = await asyncio.gather(*self._watchers, return_exceptions=True)
        outcomes += await asyncio.gather(*(server.stop() for server in self._servers), return_exceptions=True)
        await self._session.close()
        for outcome in outcomes:  # raised last, so that one failure does not keep the others from being stopped
            if isinstance(outcome, Exception):
                raise outcome


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Finish `work` even when cancelled meanwhile; the cancellation is raised afterwards."""
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
