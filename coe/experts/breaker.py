"""Whether one server may be asked: closed, open after failures, half-open for the one request that tries it again."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "resting", "open", "half_open"]
_Failure = tuple[str, bool]
"""Its caller, and whether it concerns all callers."""

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
RECENT = 2 * LONGEST_COOL_DOWN
"""Seconds for which a caller counts as one that uses the server: longer than an open breaker keeps it away."""
MIN_OTHERS = 2
"""Failures in the window that the caller with the most failures must not have provoked, where several callers use the
server: a single one is chance, and would open the breaker whenever another caller's poison fills the window."""
_NEVER = float("-inf")


class Breaker:
    """A state machine over the outcomes of real requests. Every request does `begin()`, then says how it went with the
    number `begin` gave; outcomes of requests begun before the breaker last opened are stale and change nothing.

    Where more than one caller uses the server, failures that a single request can provoke open it only if they come
    from several callers. A failed trial counts likewise: one caller's failure lets another caller try at once.
    Failures that concern all callers (`concerns_all`) count whoever meets them. A 429 rests the server for its own
    caller, and for all once another caller gets one meanwhile. Its memory is bounded: the callers of the last WINDOW
    outcomes, the latest caller, and the latest that was told to rest.

    Not thread-safe: it lives in one event loop. `clock` is in seconds and never goes back.
    """

    __slots__ = ("_caller", "_caller_at", "_clock", "_closed_at", "_cool_down", "_era", "_failed_at", "_open",
                 "_other_at", "_own_rest", "_rest", "_rested", "_streak", "_trial", "_tried", "_unsure_of", "_until",
                 "_window", "calm", "concerns_all")  # fmt: skip

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open = False
        self._era = 0
        self._until = 0.0
        self._trial = False
        self._tried = _NEVER
        self._rest = self._own_rest = 0.0
        self._rested: str | None = None  # the caller whose rest ends at _own_rest
        self._cool_down = COOL_DOWN / 2
        self._closed_at = clock()
        self._streak = 0
        self._window: deque[_Failure | None] = deque(maxlen=WINDOW)  # None: an answer
        self._failed_at = _NEVER
        self._caller = ""
        self._caller_at = self._other_at = _NEVER
        self._unsure_of: str | None = None
        self.calm = True
        """It is closed and did nothing but answer lately: what is nearly always so is quickly seen."""
        self.concerns_all = False
        """True if the failure that last opened it concerns every caller."""

    @property
    def state(self) -> State:
        """`half_open` from the time a trial is due until it is decided; `resting` after an answer 429."""
        now = self._clock()
        if self._open:
            return "open" if now < self._until else "half_open"
        return "resting" if now < self._rest else "closed"

    def ready(self, now: float, caller: str | None = None) -> bool:
        """Whether a request may begin now (of this `caller`). After a failed trial that proved nothing about other
        callers, its own caller waits for a cool-down."""
        if self.calm:
            return True
        return self.wait(now, caller) <= 0

    def wait(self, now: float, caller: str | None = None) -> float:
        """Seconds until a request may begin (of this `caller`), unless a trial decides it before."""
        deadline = max(self._rest, self._next_trial() if self._open else 0.0)
        if caller is not None:
            if caller == self._rested:
                deadline = max(deadline, self._own_rest)
            if self._open and caller == self._unsure_of:
                deadline = max(deadline, self._tried + self._cool_down)
        return max(deadline - now, 0.0)

    def _next_trial(self) -> float:
        """When the next one is due. One that is under way keeps others off for a cool-down, not until it ends: the
        first piece of a plain answer is its last, and healthy servers take minutes over some."""
        return self._tried + self._cool_down if self._trial else self._until

    def shaken(self, now: float) -> bool:
        """Whether it failed within the last second and did not answer since: where there is a choice another server is
        the better one."""
        return now - self._failed_at < COOL_DOWN

    def begin(self, caller: str = "") -> int:
        """A request of `caller` goes out (`ready` said it may)."""
        now = self._clock()
        if caller != self._caller:
            self._caller, self._other_at = caller, self._caller_at
        self._caller_at = now
        if self._open:
            self._trial, self._tried = True, now
        return self._era

    def answered(self, era: int) -> None:
        """The first piece is there. A trial that gets so far closes the breaker, on probation: one failure before the
        first whole answer opens it again."""
        if self._open and era == self._era:
            self._open = self._trial = False
            self._closed_at = self._clock()
            self._window.clear()
            self._unsure_of = None
            self._streak = STREAK - 1

    def succeeded(self, era: int) -> None:
        """The answer came whole, or the server had good reason to refuse the request itself."""
        if era != self._era:
            return
        if not self.calm:
            self.answered(era)
            self._streak = 0
            self._failed_at = _NEVER
            self.calm = self._clock() >= max(self._rest, self._own_rest)
        self._window.append(None)

    def failed(self, era: int, *, caller: str = "", concerns_all: bool = False) -> None:
        """The server refused, broke off, was too slow or talked nonsense. `concerns_all`: no request can provoke that,
        so every caller would meet it."""
        if era != self._era:
            return
        self.calm = False
        now = self._failed_at = self._clock()
        self._window.append((caller, concerns_all))
        self._streak += 1
        if self._open:
            self._trial_failed(now, caller, concerns_all)
        elif self._failing() and not self._one_callers_doing(now, caller):
            self._trip(now, concerns_all)

    def dropped(self, era: int) -> None:
        """The request was given up by its caller; that says nothing about the server."""
        if self._open and era == self._era:
            self._trial = False

    def rest(self, seconds: float, *, caller: str = "") -> None:
        """The server asked not to be asked for so long (429), after a request of `caller`."""
        self.calm = False
        now = self._clock()
        end = now + min(seconds, LONGEST_REST)
        if not self._others(now, caller) or (now < self._own_rest and caller != self._rested):
            self._rest = max(self._rest, end)
        else:
            self._own_rest = max(self._own_rest, end) if caller == self._rested else end
            self._rested = caller

    def hurry(self) -> None:
        """A sign of life: the trial may come now. Only a real answer closes the breaker."""
        self._until, self._trial = 0.0, False

    def _failing(self) -> bool:
        return self._streak >= STREAK or len(self._window) - self._window.count(None) >= RATE

    def _one_callers_doing(self, now: float, caller: str) -> bool:
        """Whether other callers use the server and the failures are one caller's but for less than MIN_OTHERS."""
        if not self._others(now, caller):
            return False
        failures = [failure for failure in self._window if failure is not None]
        by_caller = Counter(caller for caller, concerns_all in failures if not concerns_all)
        return len(failures) - max(by_caller.values(), default=0) < MIN_OTHERS

    def _others(self, now: float, caller: str) -> bool:
        """Whether a caller other than this one was seen lately."""
        return now - (self._other_at if caller == self._caller else self._caller_at) < RECENT

    def _trial_failed(self, now: float, caller: str, concerns_all: bool) -> None:
        if concerns_all or self._unsure_of not in (None, caller) or not self._others(now, caller):
            self._trip(now, concerns_all)
        else:
            self._trial, self._unsure_of = False, caller

    def _trip(self, now: float, concerns_all: bool) -> None:
        fresh = not self._open and now - self._closed_at >= STEADY
        self._cool_down = COOL_DOWN if fresh else min(2 * self._cool_down, LONGEST_COOL_DOWN)
        self._open, self._trial, self._unsure_of = True, False, None
        self._until = now + self._cool_down
        self._era += 1
        self._window.clear()
        self._streak = 0
        self.concerns_all = concerns_all
