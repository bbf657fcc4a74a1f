"""When to try again something that failed: after a pause that doubles up to a cap."""

from __future__ import annotations

import time


class Backoff:
    """In seconds: `first` after one failure, doubling to `longest`, back to none after a success."""

    def __init__(self, *, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._pause = 0.0
        self._until = 0.0

    @property
    def resting(self) -> bool:
        """Whether it is too early to try again."""
        return time.monotonic() < self._until

    def failed(self) -> None:
        self._pause = min(self._longest, self._pause * 2 or self._first)
        self._until = time.monotonic() + self._pause

    def reset(self) -> None:
        self._pause = self._until = 0.0
