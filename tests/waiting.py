"""Time in tests: a clock that a test sets, and waiting for a condition in place of a fixed pause."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest


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


LONG_TIME = 100_000.0
"""Seconds, more than any limit of the product or of a test; a message shows them as 100000."""


def expire_when(monkeypatch: pytest.MonkeyPatch, condition: Callable[[], object]) -> None:
    """Let each `asyncio.timeout` of nearly LONG_TIME or more expire once `condition()` is true, and not by the clock.

    On a busy machine a short limit could expire before the event that the test needs.
    """
    timeout_of = asyncio.timeout

    def timeout(delay: float | None) -> asyncio.Timeout:
        if delay is None or delay < 0.9 * LONG_TIME:
            return timeout_of(delay)
        expiring = _Expiring(None)
        expiring.condition = condition
        return expiring

    monkeypatch.setattr(asyncio, "timeout", timeout)


class _Expiring(asyncio.Timeout):
    """Expires once the condition is true."""

    condition: Callable[[], object]

    async def __aenter__(self) -> _Expiring:
        await super().__aenter__()
        self._expiry = asyncio.create_task(self._expire())
        return self

    async def __aexit__(self, *error: Any) -> bool | None:
        self._expiry.cancel()
        return await super().__aexit__(*error)

    async def _expire(self) -> None:
        while not self.condition():
            await asyncio.sleep(0.01)
        self.reschedule(asyncio.get_running_loop().time())
