"""Time in tests: a clock that a test sets, and waiting for a condition in place of a fixed pause."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class ManualClock:
    """A clock that returns `now`, in seconds, until the test sets another time."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


async def wait_until(condition: Callable[[], object], *, pause: float = 0.001) -> None:
    """Wait until `condition()` is true, checked every `pause` seconds. Raises TimeoutError after a minute."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(pause)
