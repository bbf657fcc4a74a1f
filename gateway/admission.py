"""How many requests one process works on at a time: a permit is held to the last byte; without one, 429."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from coe.errors import Overloaded

RETRY_AFTER = 1.0
"""Seconds a refused client is asked to wait."""


class Admission:
    """Counts permits. Refusing at once keeps latency honest; a queue would only hide that the experts are slower."""

    def __init__(self, *, permits: int) -> None:
        self._permits = permits
        self.in_use = 0

    @asynccontextmanager
    async def permit(self, caller: str | None) -> AsyncIterator[None]:
        """Hold a permit. Raises Overloaded when none is free."""
        if self.in_use >= self._permits:
            message = f"all {self._permits} permits are in use; try again later"
            raise Overloaded(message, retry_after=RETRY_AFTER)
        self.in_use += 1
        try:
            yield
        finally:
            self.in_use -= 1
