"""How long an expert usually takes to begin, from its latest streams."""

from __future__ import annotations

KEPT = 256
ENOUGH = 20
"""Streams before a 95th percentile means anything: with fewer it is the slowest one."""
_FRESH = 16
"""Streams that one percentile stands for; sorting for each would cost every request 10 µs."""


class FirstPieces:
    """The times, in seconds, to the first pieces of the last 256 streams."""

    __slots__ = ("_next", "_p95", "_seen", "_times")

    def __init__(self) -> None:
        self._times: list[float] = []
        self._next = 0
        self._p95: float | None = None
        self._seen = 0

    def note(self, seconds: float) -> None:
        """Remember one stream's time."""
        if len(self._times) < KEPT:
            self._times.append(seconds)
        else:
            self._times[self._next] = seconds
            self._next = (self._next + 1) % KEPT
        self._seen += 1
        if self._seen >= ENOUGH and (self._p95 is None or self._seen % _FRESH == 0):
            ordered = sorted(self._times)
            self._p95 = ordered[int(0.95 * (len(ordered) - 1))]

    @property
    def p95(self) -> float | None:
        """Seconds within which 95 % of them came; None before there are 20."""
        return self._p95
