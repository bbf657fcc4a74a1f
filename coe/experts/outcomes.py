"""Outcomes of requests: a circuit breaker for each server; incidents and first-token times for each expert.

`Breaker` is closed, open after failures, and half-open for the request that tries the server again. It follows the
outcomes of real requests and their callers (tenants), so that one caller's bad requests do not close a server to all
others. `Incidents` logs each cause of failures once, from the first failure until the expert answers without it.
`FirstTokenTimes` keeps the 95th percentile, after which the routing layer hedges a slow request. `coe.experts.replicas`
drives all three.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from coe.errors import Cause, ExpertBusy, ExpertError
from coe.experts.error_mapping import REMEDIES

State = Literal["closed", "rate_limited", "open", "half_open"]
_Failure = tuple[str, bool]
"""The caller, and whether the failure concerns all callers."""

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
CALLER_MEMORY = 2 * MAX_COOL_DOWN
"""Seconds for which a caller counts as using the server. Longer than an open breaker keeps it away."""
MIN_OTHER_FAILURES = 2
"""Minimum failures in the window of callers other than the one with most failures, if several callers use the server.
With a minimum of one, a chance failure of any caller would let one caller's bad requests open the breaker for all."""
QUIET_PERIOD = 10.0
"""Seconds without a failure before a success ends an incident. An expert that fails now and then thus logs at most one
start and one end in that time."""
MIN_FAILURES = 3
"""Failures that make an incident an alarm: fewer may come from one odd request."""
MAX_SAMPLES = 256
"""Streams whose times are stored."""
MIN_SAMPLES = 20
"""Streams before the 95th percentile is reported: with fewer it is the slowest one."""
_P95_INTERVAL = 16
"""Streams between two computations of the percentile; sorting for each would cost every request 10 µs."""
ABANDONED_SHARE = 0.1
"""Share of an expert's streams that may be abandoned as slower than usual. Normally one in twenty is. If more are, the
expert has become slower, and this shows only if its streams are awaited (like gRPC's retry throttling)."""
ABANDONED_BURST = 10.0
"""Streams that may be abandoned in a row."""
_NEVER = float("-inf")
_log = logging.getLogger(__name__)


class Breaker:
    """A state machine over the outcomes of requests.

    Every request calls `begin()` and reports its outcome with the generation number that `begin` returned. Outcomes of
    requests that began before the breaker last opened are stale and change nothing.

    If several callers use the server, failures that a single request can provoke open it only if they come from several
    callers. The same holds for a failed trial: after one caller's failure another caller may try at once. Failures that
    concern all callers (`caller_independent`) count for every caller. A 429 throttles its own caller, and all callers
    once another one gets a 429 in the meantime. Memory is bounded: the callers of the last WINDOW_SIZE outcomes, the
    latest caller, and the latest throttled one.

    Not thread-safe: it belongs to one event loop. `clock` is in seconds and monotonic.
    """

    __slots__ = (
        "_caller",
        "_caller_at",
        "_caller_throttled_until",
        "_clock",
        "_closed_at",
        "_consecutive_failures",
        "_cool_down",
        "_failed_at",
        "_failed_trial_caller",
        "_generation",
        "_open",
        "_open_until",
        "_other_caller_at",
        "_throttled_caller",
        "_throttled_until",
        "_trial",
        "_trial_began",
        "_window",
        "caller_independent",
        "healthy",
    )  # fmt: skip

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open = False
        self._generation = 0
        self._open_until = 0.0
        self._trial = False
        self._trial_began = _NEVER
        self._throttled_until = self._caller_throttled_until = 0.0
        self._throttled_caller: str | None = None  # until _caller_throttled_until
        self._cool_down = COOL_DOWN / 2
        self._closed_at = clock()
        self._consecutive_failures = 0
        self._window: deque[_Failure | None] = deque(maxlen=WINDOW_SIZE)  # None: an answer
        self._failed_at = _NEVER
        self._caller = ""
        self._caller_at = self._other_caller_at = _NEVER
        self._failed_trial_caller: str | None = None
        self.healthy = True
        """Closed, not throttled, and no failure since the last success. The fast path for the usual case."""
        self.caller_independent = False
        """True if the failure that last opened it concerns every caller."""

    @property
    def state(self) -> State:
        """`half_open` from the time a trial is due until it is decided; `rate_limited` while throttled by a 429."""
        now = self._clock()
        if self._open:
            return "open" if now < self._open_until else "half_open"
        return "rate_limited" if now < self._throttled_until else "closed"

    def ready(self, now: float, caller: str | None = None) -> bool:
        """True if a request of `caller` may begin now.

        The caller of a failed trial waits for one cool-down. Other callers need not wait if its own request may have
        caused the failure.
        """
        if self.healthy:
            return True
        return self.wait(now, caller) <= 0

    def wait(self, now: float, caller: str | None = None) -> float:
        """Seconds until a request of `caller` may begin, unless a trial decides it earlier."""
        deadline = max(self._throttled_until, self._next_trial() if self._open else 0.0)
        if caller is not None:
            if caller == self._throttled_caller:
                deadline = max(deadline, self._caller_throttled_until)
            if self._open and caller == self._failed_trial_caller:
                deadline = max(deadline, self._trial_began + self._cool_down)
        return max(deadline - now, 0.0)

    def _next_trial(self) -> float:
        """Return the time of the next trial. A running trial blocks others for one cool-down only, not until it ends,
        because a response that is not streamed may take a healthy server minutes."""
        return self._trial_began + self._cool_down if self._trial else self._open_until

    def failed_recently(self, now: float) -> bool:
        """True if it failed within the last second and has not succeeded since. Other servers are preferred then."""
        return now - self._failed_at < COOL_DOWN

    def begin(self, caller: str = "") -> int:
        """Starts a request of `caller`, after `ready` allowed it. Returns the generation for its outcome."""
        now = self._clock()
        if caller != self._caller:
            self._caller, self._other_caller_at = caller, self._caller_at
        self._caller_at = now
        if self._open:
            self._trial, self._trial_began = True, now
        return self._generation

    def answered(self, generation: int) -> None:
        """The first chunk arrived. For a trial this closes the breaker on probation: one failure before the first
        complete response opens it again."""
        if self._open and generation == self._generation:
            self._open = self._trial = False
            self._closed_at = self._clock()
            self._window.clear()
            self._failed_trial_caller = None
            self._consecutive_failures = MAX_CONSECUTIVE_FAILURES - 1

    def succeeded(self, generation: int) -> None:
        """The response was complete, or the server rightly rejected the request."""
        if generation != self._generation:
            return
        if not self.healthy:
            self.answered(generation)
            self._consecutive_failures = 0
            self._failed_at = _NEVER
            self.healthy = self._clock() >= max(self._throttled_until, self._caller_throttled_until)
        self._window.append(None)

    def failed(self, generation: int, *, caller: str = "", caller_independent: bool = False) -> None:
        """Record that the server refused, broke off, timed out or sent an invalid response.

        `caller_independent` is True if no request can provoke this failure, so every caller would meet it.
        """
        if generation != self._generation:
            return
        self.healthy = False
        now = self._failed_at = self._clock()
        self._window.append((caller, caller_independent))
        self._consecutive_failures += 1
        if self._open:
            self._trial_failed(now, caller, caller_independent)
        elif self._over_threshold() and not self._provoked_by_one_caller(now, caller):
            self._trip(now, caller_independent)

    def cancelled(self, generation: int) -> None:
        """The caller cancelled the request, which is not an outcome of the server."""
        if self._open and generation == self._generation:
            self._trial = False

    def throttle(self, seconds: float, *, caller: str = "") -> None:
        """Record a 429 to a request of `caller`, with a Retry-After of `seconds`."""
        self.healthy = False
        now = self._clock()
        end = now + min(seconds, MAX_THROTTLE)
        # All callers are throttled if this is the only caller, or if a second caller gets a 429 while one is throttled.
        if not self._has_other_callers(now, caller) or (
            now < self._caller_throttled_until and caller != self._throttled_caller
        ):
            self._throttled_until = max(self._throttled_until, end)
        else:
            self._caller_throttled_until = (
                max(self._caller_throttled_until, end) if caller == self._throttled_caller else end
            )
            self._throttled_caller = caller

    def allow_trial_now(self) -> None:
        """A health check passed, so a trial may begin now. Only a real response closes the breaker."""
        self._open_until, self._trial = 0.0, False

    def _over_threshold(self) -> bool:
        return (
            self._consecutive_failures >= MAX_CONSECUTIVE_FAILURES
            or len(self._window) - self._window.count(None) >= MAX_WINDOW_FAILURES
        )

    def _provoked_by_one_caller(self, now: float, caller: str) -> bool:
        """True if other callers use the server and fewer than MIN_OTHER_FAILURES failures are theirs."""
        if not self._has_other_callers(now, caller):
            return False
        failures = [failure for failure in self._window if failure is not None]
        by_caller = Counter(caller for caller, caller_independent in failures if not caller_independent)
        return len(failures) - max(by_caller.values(), default=0) < MIN_OTHER_FAILURES

    def _has_other_callers(self, now: float, caller: str) -> bool:
        """True if another caller than this one used the server lately."""
        return now - (self._other_caller_at if caller == self._caller else self._caller_at) < CALLER_MEMORY

    def _trial_failed(self, now: float, caller: str, caller_independent: bool) -> None:
        if (
            caller_independent
            or self._failed_trial_caller not in (None, caller)
            or not self._has_other_callers(now, caller)
        ):
            self._trip(now, caller_independent)
        else:
            self._trial, self._failed_trial_caller = False, caller

    def _trip(self, now: float, caller_independent: bool) -> None:
        fresh = not self._open and now - self._closed_at >= COOL_DOWN_RESET
        self._cool_down = COOL_DOWN if fresh else min(2 * self._cool_down, MAX_COOL_DOWN)
        self._open, self._trial, self._failed_trial_caller = True, False, None
        self._open_until = now + self._cool_down
        self._generation += 1
        self._window.clear()
        self._consecutive_failures = 0
        self.caller_independent = caller_independent


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


class FirstTokenTimes:
    """Seconds to the first token of the last MAX_SAMPLES streams, and their 95th percentile."""

    __slots__ = ("_abandon_budget", "_count", "_next", "_p95", "_times", "p95")

    def __init__(self) -> None:
        self.p95: float | None = None
        """Seconds within which 95 % of the streams began. None before MIN_SAMPLES streams, or if too many were
        abandoned."""
        self._abandon_budget = (
            ABANDONED_BURST  # of a token bucket, as in gRPC's retry throttling; not tokens of an answer
        )
        self._times: list[float] = []
        self._next = 0
        self._p95: float | None = None
        self._count = 0

    def record_abandoned(self, seconds: float) -> None:
        """Record a stream that was abandoned after `seconds` without a token: another expert answered first, or the
        client left.

        A time above the 95th percentile is recorded like that of a complete stream. Without the slowest streams the
        percentile would fall, and more streams would count as slow.
        """
        if self._p95 is not None and seconds > self._p95:
            self._abandon_budget = max(self._abandon_budget - 1.0 - ABANDONED_SHARE, 0.0)
            self.record(seconds)

    def record(self, seconds: float) -> None:
        """Records the time of one stream."""
        self._abandon_budget = min(self._abandon_budget + ABANDONED_SHARE, ABANDONED_BURST)
        if len(self._times) < MAX_SAMPLES:
            self._times.append(seconds)
        else:
            self._times[self._next] = seconds
            self._next = (self._next + 1) % MAX_SAMPLES
        self._count += 1
        if self._count >= MIN_SAMPLES and (self._p95 is None or self._count % _P95_INTERVAL == 0):
            ordered = sorted(self._times)
            self._p95 = ordered[int(0.95 * (len(ordered) - 1))]
        self.p95 = self._p95 if self._abandon_budget >= 1.0 else None
