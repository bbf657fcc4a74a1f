"""An expert that shares a device: each call holds it awake from before the request until the last byte."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from coe.core import Call, Expert, Health, Reply


class ResidencyHold(Protocol):
    """Loads experts on demand. Implemented by `coe.fleet.residency.client.ResidencyClient`."""

    async def acquire(self, expert: str, *, category: str, deadline: float, stand_in: str) -> Callable[[], None]:
        """Waits until the expert is awake, at most until `deadline` (event loop clock), and not at all if the expert
        `stand_in` is awake. Returns the function that releases it. Raises ExpertAsleep."""


class ResidentExpert:
    """Calls `expert` while it is held awake. `stand_in` names the expert that may answer in its place, if any."""

    health = Health()

    def __init__(self, expert: Expert, *, stand_in: str | None, residency: ResidencyHold) -> None:
        self.name = expert.name
        self._expert = expert
        self._stand_in = stand_in
        self._residency = residency

    async def stream(self, call: Call) -> Reply:
        """Holds the expert, then calls it. Raises what either raises."""
        stand_in = call.stand_in if call.stand_in == self._stand_in else ""
        release = await self._residency.acquire(
            self.name, category=call.category, deadline=call.wake_deadline, stand_in=stand_in
        )
        try:
            return _ResidentReply(await self._expert.stream(call), release)
        except BaseException:
            release()
            raise

    async def aclose(self) -> None:
        await self._expert.aclose()


class _ResidentReply:
    """A reply that holds its expert awake until its last byte."""

    __slots__ = ("_release", "_reply", "media_type", "usage")

    def __init__(self, reply: Reply, release: Callable[[], None]) -> None:
        self.media_type = reply.media_type
        self.usage = reply.usage
        self._reply = reply
        self._release: Callable[[], None] | None = release

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        chunks = self._reply.chunks()
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            self._finish()
            await chunks.aclose()

    async def aclose(self) -> None:
        self._finish()
        await self._reply.aclose()

    def _finish(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()
