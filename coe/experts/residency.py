"""An expert that takes turns at a device: awake before it is asked, and kept so until its last byte."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from coe.core import Call, Expert, Health, Reply


class ResidencyHold(Protocol):
    """Whoever wakes experts."""

    async def hold(self, expert: str, *, category: str, deadline: float, stand_in: str) -> Callable[[], None]:
        """Wait until the expert is awake, at most until a time of the event loop's clock, less where a `stand_in` one
        is awake. Gives back what to call when the request is over. Raises ExpertAsleep."""


class ResidentExpert:
    """Asks `expert` once its turn has come. `stand_in` is the expert that may answer in its place, if any."""

    health = Health()

    def __init__(self, expert: Expert, *, stand_in: str | None, turns: ResidencyHold) -> None:
        self.name = expert.name
        self._expert = expert
        self._sibling = stand_in
        self._turns = turns

    async def stream(self, call: Call) -> Reply:
        """Hold, then ask. Raises what either raises."""
        stand_in = call.stand_in if call.stand_in == self._sibling else ""
        over = await self._turns.hold(self.name, category=call.category, deadline=call.wake_deadline, stand_in=stand_in)
        try:
            return _Held(await self._expert.stream(call), over)
        except BaseException:
            over()
            raise

    async def aclose(self) -> None:
        await self._expert.aclose()


class _Held:
    """A reply whose expert stays awake until its last byte."""

    __slots__ = ("_over", "_reply", "media_type", "usage")

    def __init__(self, reply: Reply, over: Callable[[], None]) -> None:
        self.media_type = reply.media_type
        self.usage = reply.usage
        self._reply = reply
        self._over: Callable[[], None] | None = over

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        chunks = self._reply.chunks()
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            self._end()
            await chunks.aclose()

    async def aclose(self) -> None:
        self._end()
        await self._reply.aclose()

    def _end(self) -> None:
        over, self._over = self._over, None
        if over is not None:
            over()
