"""Whether one server may be asked: closed, open after failures, half-open for the one request that tries it again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "resting", "open", "half_open"]

STREAK = 5
"""Failures in a row that open it: a dead server fails at once and each costs a caller an attempt, but a single refused
or reset connection happens to healthy ones."""
WINDOW = 20
"""Latest outcomes that the failure rate is taken over: counted, not timed, so that it means the same at any traffic."""
RATE = 10
"""Failures among them that open it: half. Such a server costs every second caller a fall-back."""
COOL_DOWN = 1.0
"""Seconds until the first trial; each failed one doubles it."""
LONGEST_COOL_DOWN = 60.0
STEADY = 60.0
"""Seconds closed after which an earlier trouble no longer lengthens the cool-down."""
LONGEST_REST = 60.0
"""Seconds that one answer 429 can rest a server; after that a request finds out whether it still means it."""
_MASK = (1 << WINDOW) - 1
_NEVER = float("-inf")


class Breaker:
    """A state machine over the outcomes of real requests. Every request does `begin()`, then says how it went with the
    number `begin` gave; outcomes of requests begun before the breaker last opened are stale and change nothing.

    Not thread-safe: it lives in one event loop. `clock` is in seconds and never goes back.
    """

    __slots__ = ("_clock", "_closed_at", "_cool_down", "_era", "_failed_at", "_open", "_rest", "_streak", "_trial",
                 "_tried", "_until", "_window", "calm")  # fmt: skip

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open = False
        self._era = 0
        self._until = 0.0
        self._trial = False
        self._tried = _NEVER
        self._rest = 0.0
        self._cool_down = COOL_DOWN / 2
        self._closed_at = clock()
        self._streak = 0
        self._window = 0
        self._failed_at = _NEVER
        self.calm = True
        """It is closed and did nothing but answer lately: what is nearly always so is quickly seen."""

    @property
    def state(self) -> State:
        """`half_open` from the time a trial is due until it is decided; `resting` after an answer 429."""
        now = self._clock()
        if self._open:
            return "open" if now < self._until else "half_open"
        return "resting" if now < self._rest else "closed"

    def ready(self, now: float) -> bool:
        """Whether a request may begin now."""
        if self.calm:
            return True
        return now >= self._rest and not (self._open and now < self._next_trial())

    def wait(self, now: float) -> float:
        """Seconds until a request may begin, unless a trial decides it before."""
        return max(self._rest - now, self._next_trial() - now if self._open else 0.0, 0.0)

    def _next_trial(self) -> float:
        """When the next one is due. One that is under way keeps others off for a cool-down, not until it ends: the
        first piece of a plain answer is its last, and healthy servers take minutes over some."""
        return self._tried + self._cool_down if self._trial else self._until

    def shaken(self, now: float) -> bool:
        """Whether it failed within the last second and did not answer since: where there is a choice another server is
        the better one."""
        return now - self._failed_at < COOL_DOWN

    def begin(self) -> int:
        """A request goes out (`ready` said it may)."""
        if self._open:
            self._trial, self._tried = True, self._clock()
        return self._era

    def answered(self, era: int) -> None:
        """The first piece is there. A trial that gets so far closes the breaker, on probation: one failure before the
        first whole answer opens it again."""
        if self._open and era == self._era:
            self._open = self._trial = False
            self._closed_at = self._clock()
            self._window = 0
            self._streak = STREAK - 1

    def succeeded(self, era: int) -> None:
        """The answer came whole, or the server had good reason to refuse the request itself."""
        if era != self._era:
            return
        if not self.calm:
            self.answered(era)
            self._streak = 0
            self._failed_at = _NEVER
            self.calm = self._clock() >= self._rest
        self._window = (self._window << 1) & _MASK

    def failed(self, era: int) -> None:
        """The server refused, broke off, was too slow or talked nonsense."""
        if era != self._era:
            return
        self.calm = False
        now = self._failed_at = self._clock()
        self._window = (self._window << 1 | 1) & _MASK
        self._streak += 1
        if self._open or self._streak >= STREAK or self._window.bit_count() >= RATE:
            self._trip(now)

    def dropped(self, era: int) -> None:
        """The request was given up by its caller; that says nothing about the server."""
        if self._open and era == self._era:
            self._trial = False

    def rest(self, seconds: float) -> None:
        """The server asked not to be asked for so long (429)."""
        self.calm = False
        self._rest = max(self._rest, self._clock() + min(seconds, LONGEST_REST))

    def hurry(self) -> None:
        """A sign of life: the trial may come now. Only a real answer closes the breaker."""
        self._until, self._trial = 0.0, False

    def _trip(self, now: float) -> None:
        fresh = not self._open and now - self._closed_at >= STEADY
        self._cool_down = COOL_DOWN if fresh else min(2 * self._cool_down, LONGEST_COOL_DOWN)
        self._open, self._trial = True, False
        self._until = now + self._cool_down
        self._era += 1
        self._window = self._streak = 0
