"""`Outage`: something that fails for a time is logged once, tried again after a pause, and reported by a metric."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

_log = logging.getLogger("coe.outage")

WARNING_INTERVAL_SECONDS = 60.0
"""Shortest time between two warnings with the same effect."""
RETRY_SECONDS = 1.0
"""The usual pause before the next attempt."""


class Outage:
    """The current failure of one thing: its cause, its log lines, and the pause before the next attempt.

    Each log line begins with `name` and ends with the text of `counts`, if given. `effect` says what the failure means
    for users. The pause is `first` seconds and doubles with each failure, up to `longest`.
    """

    def __init__(
        self,
        name: str,
        effect: str = "",
        *,
        counts: Callable[[], str] | None = None,
        first: float | None = None,
        longest: float = 0.0,
    ) -> None:
        self.cause: str | None = None
        """The cause of the current failure; None while the thing works."""
        self._name, self._effect, self._counts = name, effect, counts
        self._first, self._longest = first, longest
        self._pause = self._retry_at = 0.0
        self._next_warnings: dict[str, float] = {}
        self._is_reported = False

    @property
    def active(self) -> bool:
        """True while the thing fails: the value of a metric."""
        return self.cause is not None

    @property
    def pausing(self) -> bool:
        """True until the pause after the last failure is over."""
        return time.monotonic() < self._retry_at

    def began(self, cause: str, effect: str | None = None, *, pause: bool = True) -> None:
        """Store the cause of a failure, log it if a warning is due, and begin the pause."""
        self.cause = cause
        if pause:
            first = RETRY_SECONDS if self._first is None else self._first
            self._pause = max(first, min(self._longest, self._pause * 2))
            self._retry_at = time.monotonic() + self._pause
        self._is_reported |= self.warn(cause, effect)

    def ended(self) -> None:
        """Forget the cause and the pause, and log the recovery if the failure was logged."""
        self.cause = None
        self.retry_now()
        if self._is_reported:
            self._is_reported = False
            _log.warning("%s: works again%s", self._name, self._suffix())

    def retry_now(self) -> None:
        """End the pause."""
        self._pause = self._retry_at = 0.0

    def warn(self, problem: str, effect: str | None = None) -> bool:
        """Log a problem and its effect. Returns False if it was not logged, because a warning with the same effect was
        logged within WARNING_INTERVAL_SECONDS. The set of effects must be small, since each one is stored."""
        effect = self._effect if effect is None else effect
        if time.monotonic() < self._next_warnings.get(effect, 0.0):
            return False
        self._next_warnings[effect] = time.monotonic() + WARNING_INTERVAL_SECONDS
        _log.warning("%s: %s%s%s", self._name, problem, effect, self._suffix())
        return True

    def _suffix(self) -> str:
        return f" ({self._counts()})" if self._counts else ""
