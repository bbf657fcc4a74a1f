"""How long an expert usually takes to begin, from its latest streams, and whether that is worth acting on."""

from __future__ import annotations

KEPT = 256
ENOUGH = 20
"""Streams before a 95th percentile means anything: with fewer it is the slowest one."""
_FRESH = 16
"""Streams that one percentile stands for; sorting for each would cost every request 10 µs."""
SHARE = 0.1
"""Of an expert's streams that may be given up as slower than usual. By what usual means that is one in twenty: an
expert of which it is more has become slower, and can show it only where it is waited for (gRPC throttles alike)."""
SPARE = 10.0
"""Streams given up in a row that this allows for."""


class FirstPieces:
    """The times, in seconds, to the first pieces of the last 256 streams."""

    __slots__ = ("_next", "_p95", "_seen", "_spare", "_times")

    def __init__(self) -> None:
        self._spare = SPARE
        self._times: list[float] = []
        self._next = 0
        self._p95: float | None = None
        self._seen = 0

    def given_up(self, seconds: float) -> None:
        """A stream had not begun after so long when another came first, or its client left. One that was late by then
        counts as that long: without the slowest the usual time would fall, and more would seem slow each time."""
        if self._p95 is not None and seconds > self._p95:
            self._spare = max(self._spare - 1.0 - SHARE, 0.0)
            self.note(seconds)

    def note(self, seconds: float) -> None:
        """Remember one stream's time."""
        self._spare = min(self._spare + SHARE, SPARE)
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
        """Seconds within which 95 % of them came; None before there are 20, and while too many were given up."""
        return self._p95 if self._spare >= 1.0 else None
