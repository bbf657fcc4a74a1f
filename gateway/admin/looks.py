"""One look at something that takes work, shared by all who look at the same time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable


class Looks:
    """`take` makes what is seen; nothing is done while nobody looks."""

    def __init__(self, take: Callable[[], Awaitable[bytes]]) -> None:
        self._take = take
        self._seen = b""
        self._at = -math.inf
        self._taking: asyncio.Task[None] | None = None

    async def since(self, due: float) -> bytes:
        """What was taken at `due`, by the event loop's clock, or later. Raises what `take` raises."""
        while self._at < due:
            if self._taking is None:
                self._taking = asyncio.create_task(self._anew(), name="coe-look")
            await asyncio.shield(self._taking)  # who leaves meanwhile takes it from nobody
        return self._seen

    async def _anew(self) -> None:
        began = asyncio.get_running_loop().time()
        try:
            self._seen = await self._take()
            self._at = began
        finally:
            self._taking = None
