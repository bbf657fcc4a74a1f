"""Outcomes of requests: a circuit breaker for each server, and the incidents of each expert.

`Breaker` is closed, open after failures, and half-open for the request that tries the server again. It follows the
outcomes of real requests. `Incidents` logs each cause of failures once, from the first failure until the expert answers
without it. `coe.experts.replicas` drives both.

Answers that are held whole, and the count of their bytes, so that all answers of a process have bounded memory.

An answer without a stream is held from its first byte until the client has it, a long event until it is complete and
sent. The holder of such bytes has a `HeldAnswer`, which reports to the memory of its call.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from coe.core import AnswerMemory
from coe.errors import REMEDIES, Cause, ExpertBusy, ExpertError
from coe.usage import Usage

State = Literal["closed", "rate_limited", "open", "half_open"]

WINDOW_SIZE = 10
"""Outcomes among which failures are counted. They are not timed, so that the rate means the same at any traffic."""
MAX_FAILURES = 5
"""Failures in the window that open the breaker. Small, because each costs a caller an attempt, and above one, because
healthy servers occasionally refuse or reset a connection."""
COOL_DOWN = 5.0
"""Seconds until a trial, and from one trial to the next."""
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

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open = False
        self._generation = 0
        self._blocked_until = self._failed_at = _NEVER
        self._window: deque[bool] = deque(maxlen=WINDOW_SIZE)  # True: a failure

    @property
    def state(self) -> State:
        """`half_open` while a trial may begin; `rate_limited` while throttled by a 429."""
        if self.ready(self._clock()):
            return "half_open" if self._open else "closed"
        return "open" if self._open else "rate_limited"

    def ready(self, now: float) -> bool:
        """True if a request may begin now."""
        return now >= self._blocked_until

    def wait(self, now: float) -> float:
        """Seconds until a request may begin, unless a trial decides it earlier."""
        return max(self._blocked_until - now, 0.0)

    def failed_recently(self, now: float) -> bool:
        """True if it failed within the last second and has not succeeded since. Other servers are preferred then."""
        return now - self._failed_at < 1.0

    def begin(self) -> int:
        """Starts a request, after `ready` allowed it. Returns the generation for its outcome. A trial blocks others for
        one cool-down, not until it ends: a response that is not streamed may take a healthy server minutes."""
        if self._open:
            self._blocked_until = self._clock() + COOL_DOWN
        return self._generation

    def answered(self, generation: int) -> None:
        """The first chunk arrived. For a trial this closes the breaker."""
        if self._open and generation == self._generation:
            self._open, self._blocked_until = False, _NEVER
            self._window.clear()

    def succeeded(self, generation: int) -> None:
        """The response was complete, or the server rightly rejected the request."""
        if generation == self._generation:
            self.answered(generation)
            self._window.append(False)
            self._failed_at = _NEVER

    def failed(self, generation: int) -> None:
        """The server refused, broke off, timed out or sent an invalid response."""
        if generation != self._generation:
            return
        self._failed_at = self._clock()
        self._window.append(True)
        if self._open or sum(self._window) >= MAX_FAILURES:
            self._open, self._blocked_until = True, max(self._blocked_until, self._failed_at + COOL_DOWN)
            self._generation += 1

    def cancelled(self, generation: int) -> None:
        """The caller cancelled the request, which is not an outcome of the server."""
        if self._open and generation == self._generation:
            self._blocked_until = self._clock()

    def throttle(self, seconds: float) -> None:
        """The server answered 429 with a Retry-After of `seconds`."""
        self._blocked_until = max(self._blocked_until, self._clock() + min(seconds, MAX_THROTTLE))


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
        now = self._clock()
        for incident in tuple(self._active.values()):
            if self._answered > incident.latest and now - incident.latest >= QUIET_PERIOD:
                del self._active[incident.cause]
                message = "expert %s answers again: %s ended after %d failures in %.0f s"
                _log.info(message, self._expert, incident.cause, incident.failures, now - incident.began)


SMALL_ANSWER = 2**16
"""Bytes of an answer that are not counted; the permits bound them."""


class HeldAnswer:
    """The bytes that one holder has."""

    def __init__(self, memory: AnswerMemory | None) -> None:
        self._memory = memory
        self._counted = 0

    def resize(self, size: int) -> None:
        """Hold `size` bytes in all, of which up to SMALL_ANSWER are not counted. Raises AnswerMemoryFull."""
        counted = size if size > SMALL_ANSWER else 0
        if counted != self._counted and self._memory is not None:
            self._memory(counted - self._counted)
            self._counted = counted


class WholeReply:
    """A reply with one JSON document, which `held` counts until the reply is closed."""

    media_type = "application/json"

    def __init__(self, body: bytes, usage: Usage, held: HeldAnswer) -> None:
        held.resize(len(body))
        self.usage = usage
        self._body, self._held = body, held

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        yield self._body

    async def aclose(self) -> None:
        self._held.resize(0)
