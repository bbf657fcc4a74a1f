"""One server that takes turns: woken or started, put to sleep or stopped, watched while it is awake."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import aiohttp

from coe.errors import FleetError
from coe.fleet import probe
from coe.fleet.residency.devices import ScheduledServer
from coe.fleet.server import Server
from coe.fleet.timeouts import Timeouts
from coe.fleet.vllm.client import Vllm
from coe.supervision import supervised

AWAKE_TIMEOUT = 60.0
"""Seconds for the first token of a server that woke."""


class ManagedServer:
    """One thing at a time: whoever orders awaits the end of it before ordering the next."""

    def __init__(
        self, room: ScheduledServer, *, session: aiohttp.ClientSession, say: Callable[[str], None], pace: Timeouts
    ) -> None:
        self.room = room
        self._session, self._say, self._pace = session, say, pace
        self._server = Server(room.spec, session=session, say=say, pace=pace)
        self._vllm = Vllm(room.spec.root, session=session)
        self._watcher: asyncio.Task[None] | None = None
        self._awake_since: float | None = None
        self._pause = 0.0

    @property
    def key(self) -> str:
        return self.room.key

    async def wake(self) -> None:
        """Return once it has given a one-token answer. Raises FleetError; `down` is due then."""
        if self._server.running:
            await self._vllm.wake(level=self.room.level or 1)
            await self._until_answer()
        else:
            await self._server.start(keep_log=True)
        self._awake_since = time.monotonic()

    async def _until_answer(self) -> None:
        try:
            async with asyncio.timeout(AWAKE_TIMEOUT):
                while not await probe.answers(self.room.spec, session=self._session):  # noqa: ASYNC110  a server's state
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise FleetError(f"gave no answer within {AWAKE_TIMEOUT:g} s of waking") from None

    async def rest(self, *, asleep: bool) -> Literal["asleep", "stopped"]:
        """Put it to sleep, or stop it: also where it does not sleep as it should."""
        await self._unwatch()
        if asleep and self._server.running:
            try:
                await self._vllm.sleep(level=self.room.level or 1)
                return "asleep"
            except FleetError as error:
                self._say(f"server {self.key!r} does not sleep and is stopped: {error}")
        await self._stop()
        return "stopped"

    async def down(self, trouble: str) -> float:
        """End what is left of a server that is in trouble; the seconds to leave it alone."""
        await self._unwatch()
        up = 0.0 if self._awake_since is None else time.monotonic() - self._awake_since
        self._pause, self._awake_since = self._pace.backoff.next(self._pause, up=up), None
        self._say(f"server {self.key!r} {trouble}; it may start again in {self._pause:g} s (log: {self.room.spec.log})")
        await self._stop()
        return self._pause

    def watch(self, trouble: Callable[[ManagedServer, str], None]) -> None:
        """Call `trouble` once when it dies or stops answering."""
        self._watcher = supervised(partial(self._until_trouble, trouble), f"watch-{self.key}", may_return=True)

    async def _until_trouble(self, trouble: Callable[[ManagedServer, str], None]) -> None:
        what = await self._server.trouble()
        self._watcher = None
        trouble(self, what)

    async def _unwatch(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    async def _stop(self) -> None:
        try:
            await self._server.stop()
        except FleetError as error:  # stuck in the kernel: there is nothing else to do about it
            self._say(str(error))

    async def aclose(self) -> None:
        """End it for good. Raises FleetError when even SIGKILL does not."""
        await self._unwatch()
        await self._server.stop()
