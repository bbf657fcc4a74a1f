"""Outcomes of requests: a circuit breaker for each server, and the incidents of each expert.

`Breaker` is closed, open after failures, and half-open for the request that tries the server again. It follows the
outcomes of real requests. `Incidents` logs each cause of failures once, from the first failure until the expert answers
without it. `coe.experts.replicas` drives both.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from coe.errors import Cause, ExpertBusy, ExpertError
from coe.experts.error_mapping import REMEDIES

State = Literal["closed", "rate_limited", "open", "half_open"]

MAX_CONSECUTIVE_FAILURES = 5
"""Consecutive failures that open the breaker. The number is small because each failure costs a caller an attempt, and
above one because healthy servers occasionally refuse or reset a connection."""
WINDOW_SIZE = 20
"""Outcomes that the failure rate is computed over. They are counted, not timed, so that the rate means the same at any
traffic."""
MAX_WINDOW_FAILURES = 10
"""Failures in the window that open it: half. Such a server costs every second caller a fallback."""
COOL_DOWN = 1.0
"""Seconds until the first trial; each failed trial doubles it."""
MAX_COOL_DOWN = 60.0
"""Longest cool-down, in seconds."""
COOL_DOWN_RESET = 60.0
"""Seconds closed after which the cool-down starts at COOL_DOWN again."""
MAX_THROTTLE = 60.0
"""Longest time in seconds that one 429 keeps requests away. After that a request checks the server again."""
QUIET_PERIOD = 10.0
"""Seconds without a failure before a success ends an incident. An expert that fails now and then thus logs at most one
start and one end in that time."""
MIN_FAILURES = 3
"""Failures that make an incident an alarm: fewer may come from one odd request."""
_NEVER = float("-inf")
_log = logging.getLogger(__name__)


class Breaker:
    """A state machine over the outcomes of requests.

    Every request calls `begin()` and reports its outcome with the generation number that `begin` returned. Outcomes of
    requests that began before the breaker last opened are stale and change nothing.

    Not thread-safe: it belongs to one event loop. `clock` is in seconds and monotonic.
    """

    __slots__ = (
        "_clock",
        "_closed_at",
        "_consecutive_failures",
        "_cool_down",
        "_failed_at",
        "_generation",
        "_open",
        "_open_until",
        "_throttled_until",
        "_trial",
        "_trial_began",
        "_window",
        "healthy",
    )

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open = False
        self._generation = 0
        self._open_until = 0.0
        self._trial = False
        self._trial_began = _NEVER
        self._throttled_until = 0.0
        self._cool_down = COOL_DOWN / 2
        self._closed_at = clock()
        self._consecutive_failures = 0
        self._window: deque[bool] = deque(maxlen=WINDOW_SIZE)  # True: a failure
        self._failed_at = _NEVER
        self.healthy = True
        """Closed, not throttled, and no failure since the last success. The fast path for the usual case."""

    @property
    def state(self) -> State:
        """`half_open` from the time a trial is due until it is decided; `rate_limited` while throttled by a 429."""
        now = self._clock()
        if self._open:
            return "open" if now < self._open_until else "half_open"
        return "rate_limited" if now < self._throttled_until else "closed"

    def ready(self, now: float) -> bool:
        """True if a request may begin now."""
        return self.healthy or self.wait(now) <= 0

    def wait(self, now: float) -> float:
        """Seconds until a request may begin, unless a trial decides it earlier.

        A running trial blocks others for one cool-down only, not until it ends, because a response that is not streamed
        may take a healthy server minutes.
        """
        deadline = self._throttled_until
        if self._open:
            deadline = max(deadline, self._trial_began + self._cool_down if self._trial else self._open_until)
        return max(deadline - now, 0.0)

    def failed_recently(self, now: float) -> bool:
        """True if it failed within the last second and has not succeeded since. Other servers are preferred then."""
        return now - self._failed_at < COOL_DOWN

    def begin(self) -> int:
        """Starts a request, after `ready` allowed it. Returns the generation for its outcome."""
        if self._open:
            self._trial, self._trial_began = True, self._clock()
        return self._generation

    def answered(self, generation: int) -> None:
        """The first chunk arrived. For a trial this closes the breaker on probation: one failure before the first
        complete response opens it again."""
        if self._open and generation == self._generation:
            self._open = self._trial = False
            self._closed_at = self._clock()
            self._window.clear()
            self._consecutive_failures = MAX_CONSECUTIVE_FAILURES - 1

    def succeeded(self, generation: int) -> None:
        """The response was complete, or the server rightly rejected the request."""
        if generation != self._generation:
            return
        if not self.healthy:
            self.answered(generation)
            self._consecutive_failures = 0
            self._failed_at = _NEVER
            self.healthy = self._clock() >= self._throttled_until
        self._window.append(False)

    def failed(self, generation: int) -> None:
        """Record that the server refused, broke off, timed out or sent an invalid response."""
        if generation != self._generation:
            return
        self.healthy = False
        self._failed_at = self._clock()
        self._window.append(True)
        self._consecutive_failures += 1
        if (
            self._open
            or self._consecutive_failures >= MAX_CONSECUTIVE_FAILURES
            or sum(self._window) >= MAX_WINDOW_FAILURES
        ):
            self._trip()

    def cancelled(self, generation: int) -> None:
        """The caller cancelled the request, which is not an outcome of the server."""
        if self._open and generation == self._generation:
            self._trial = False

    def throttle(self, seconds: float) -> None:
        """Record a 429 with a Retry-After of `seconds`."""
        self.healthy = False
        self._throttled_until = max(self._throttled_until, self._clock() + min(seconds, MAX_THROTTLE))

    def allow_trial_now(self) -> None:
        """A health check passed, so a trial may begin now. Only a real response closes the breaker."""
        self._open_until, self._trial = 0.0, False

    def _trip(self) -> None:
        now = self._clock()
        fresh = not self._open and now - self._closed_at >= COOL_DOWN_RESET
        self._cool_down = COOL_DOWN if fresh else min(2 * self._cool_down, MAX_COOL_DOWN)
        self._open, self._trial = True, False
        self._open_until = now + self._cool_down
        self._generation += 1
        self._window.clear()
        self._consecutive_failures = 0


@dataclass(slots=True)
class Incident:
    """One cause of failures; times are in seconds of the clock of its `Incidents`."""

    cause: Cause
    began: float
    latest: float
    failures: int = 1


class Incidents:
    """Logs one line when a cause begins and one when it ends. Bounded by the number of causes.

    The lines hold CoE's own words only: a server's text may quote a request or a key.
    """

    def __init__(self, expert: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._expert = expert
        self._clock = clock
        self._active: dict[Cause, Incident] = {}
        self._answered = float("-inf")

    @property
    def active(self) -> Mapping[Cause, Incident]:
        return self._active

    @property
    def failing(self) -> bool:
        """True if an incident has enough failures for an alarm."""
        return any(incident.failures >= MIN_FAILURES for incident in self._active.values())

    def failed(self, error: ExpertError, *, address: str) -> None:
        """Records a failure of the expert. Failures that the request itself caused are ignored."""
        if not error.request_sent or not (error.unhealthy or isinstance(error, ExpertBusy)):
            return
        now = self._clock()
        if (incident := self._active.get(error.cause)) is not None:
            incident.failures += 1
            incident.latest = now
            return
        self._active[error.cause] = Incident(error.cause, now, now)
        what, remedy = REMEDIES[error.cause]
        detail = f", {error.detail}" if error.detail else ""
        _log.warning("expert %s fails: %s (%s at %s%s); %s", self._expert, what, error.cause, address, detail, remedy)

    def answered(self) -> None:
        """Records a complete response."""
        if self._active:
            self._answered = self._clock()

    def close_resolved(self) -> None:
        """Ends the incidents that are over. Call it about once a second."""
        if not self._active:
            return
        now = self._clock()
        for incident in tuple(self._active.values()):
            if self._answered > incident.latest and now - incident.latest >= QUIET_PERIOD:
                del self._active[incident.cause]
                took, count = now - incident.began, incident.failures
                _log.info(
                    "expert %s answers again: %s ended after %d failures in %.0f s",
                    self._expert,
                    incident.cause,
                    count,
                    took,
                )
