"""How long to go on with what a plan can do without."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Patience:
    """Seconds from now on, and in `missed` what they were not enough for, in words."""

    def __init__(self, seconds: float = 30.0, *, missed: list[str] | None = None) -> None:
        self._end = time.monotonic() + seconds
        self.missed: list[str] = [] if missed is None else missed

    def left(self) -> float:
        """Seconds; 0 where they are over."""
        return max(0.0, self._end - time.monotonic())

    def part(self, share: float) -> Patience:
        """A share of what is left; what it does not take is left for others."""
        return Patience(share * self.left(), missed=self.missed)

    @contextmanager
    def attempt(self, what: str, *, share: float = 0.25) -> Iterator[Patience]:
        """Do one thing of several, of which a hard one must not take the time of all; a TimeoutError leaves it out."""
        try:
            yield self.part(share)
        except TimeoutError:
            if what not in self.missed:
                self.missed.append(what)
