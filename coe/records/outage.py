"""Logs the failure and the recovery of a store that is written in the background."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger("coe.records")

WARNING_INTERVAL_SECONDS = 60.0
"""Shortest time between two warnings about a store with the same effect."""


class Outage:
    """Keeps the cause of a store's current failure, and logs the failure and the recovery.

    Each log line begins with `store`, and ends with the text that `counts` returns.
    """

    def __init__(self, store: str, counts: Callable[[], str]) -> None:
        self.cause: str | None = None
        """The cause of the current failure; None while the store works."""
        self._store, self._counts = store, counts
        self._next_warnings: dict[str, float] = {}
        self._reported = False

    def began(self, cause: str, effect: str = "") -> None:
        """Keep the cause of a failure, and log it with its effect if a warning is due."""
        self.cause = cause
        self._reported |= self.warn(cause, effect)

    def ended(self) -> None:
        """Forget the cause, and log the recovery if the failure was logged."""
        self.cause = None
        if self._reported:
            self._reported = False
            logger.warning("%s: works again (%s)", self._store, self._counts())

    def warn(self, problem: str, effect: str = "") -> bool:
        """Log a problem and its effect. Returns False if it was not logged, because a warning with the same effect was
        logged within WARNING_INTERVAL_SECONDS. The set of effects must be small, since each one is remembered."""
        if time.monotonic() < self._next_warnings.get(effect, 0.0):
            return False
        self._next_warnings[effect] = time.monotonic() + WARNING_INTERVAL_SECONDS
        logger.warning("%s: %s%s (%s)", self._store, problem, effect, self._counts())
        return True
