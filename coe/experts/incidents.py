"""Incidents of one expert: from the first failure of a cause until the expert answers again without it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from coe.errors import Cause, ExpertBusy, ExpertError
from coe.experts.remedies import REMEDIES

QUIET = 10.0
"""Seconds without a failure after which an answer ends an incident, so that an expert that fails now and then does not
fill the log: at most one line to begin and one to end in that time."""
MIN_FAILURES = 3
"""Failures from which on an incident is an alarm: fewer may be one odd request."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Incident:
    """One cause for which an expert fails; times are by the clock of its `Incidents`, in seconds."""

    cause: Cause
    began: float
    latest: float
    failures: int = 1


class Incidents:
    """Logs one line when a cause begins and one when it ends. Bounded by the vocabulary of causes.

    The lines hold our own words only: a server's text may quote a request or a key.
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
        """Whether one of them has gone on long enough for an alarm."""
        return any(incident.failures >= MIN_FAILURES for incident in self._active.values())

    def failed(self, error: ExpertError, *, address: str) -> None:
        """Count a failure of the expert. What the client's request is to blame for counts as none."""
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
        """The expert gave a whole answer."""
        if self._active:
            self._answered = self._clock()

    def settle(self) -> None:
        """End the incidents that are over; to be called every second or so."""
        if not self._active:
            return
        now = self._clock()
        for incident in tuple(self._active.values()):
            if self._answered > incident.latest and now - incident.latest >= QUIET:
                del self._active[incident.cause]
                took, count = now - incident.began, incident.failures
                _log.info(
                    "expert %s answers again: %s ended after %d failures in %.0f s",
                    self._expert,
                    incident.cause,
                    count,
                    took,
                )
