"""The memory for answers that one process holds whole, which callers share fairly.

It bounds answers without a stream from their first byte until the client has the last one, long events, and what
recipes and translated streams collect. `limits.body_memory_mb` is its size, as that of the memory for large bodies.
"""

from __future__ import annotations

from threading import Lock

from coe.errors import AnswerMemoryFull
from coe.experts.http.replies import MAX_ANSWER_BYTES
from coe.registry import Limits
from gateway.request.body import RETRY_SECONDS, FairShares

MIN_MEMORY_IN_ANSWERS = 2
"""Minimum memory, as a multiple of the largest answer: one caller gets half of it, so 2 admits any single answer."""


class AnswerPool:
    """The answers of all requests of one process."""

    def __init__(self) -> None:
        self._shares = FairShares()
        self._lock = Lock()  # litellm reads its answers in another thread

    @property
    def held(self) -> int:
        """Bytes held."""
        return self._shares.held

    def grow(self, caller: str | None, limits: Limits, count: int) -> None:
        """Hold so many more bytes for this caller, fewer if the number is negative. Raises AnswerMemoryFull."""
        with self._lock:
            if count < 0:
                self._shares.release(caller, count=-count)
                return
            capacity = max(limits.body_memory_mb * 2**20, MIN_MEMORY_IN_ANSWERS * MAX_ANSWER_BYTES)
            if self._shares.acquire(caller, capacity=capacity, count=count):
                return
            own = self._shares.of(caller) / 2**20
        used = f"{self.held / 2**20:.0f} of {capacity / 2**20:.0f} MiB, {own:.0f} of this caller"
        message = f"answers that are held whole take {used}: ask for a stream, or again (limits.body_memory_mb)"
        error = AnswerMemoryFull(message, expert="")
        error.retry_after = RETRY_SECONDS
        raise error
