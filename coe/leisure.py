"""Whether there is time for a router's slower look: under load its quick answer must do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TOGETHER = 4
"""Looks under way at a time; with two threads the last of them waits for one other."""
LONG = 0.02
"""Seconds: a look that takes longer, all waiting included, says that the processors are busy."""
REST = 4.0
"""So many times as long as that look took there is none then, which leaves a busy process four fifths of its time."""


class Leisure:
    """Counts the looks of one process. Not thread-safe: for the event loop."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._under_way = 0
        self._resting_until = 0.0

    def __bool__(self) -> bool:
        """Whether one more look may begin."""
        return self._under_way < TOGETHER and self._clock() >= self._resting_until

    @contextmanager
    def look(self) -> Iterator[None]:
        """Around one look, from its beginning to its result."""
        began = self._clock()
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            now = self._clock()
            if now - began > LONG:
                self._resting_until = now + REST * (now - began)
