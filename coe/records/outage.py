"""`Outage`: the failure of a store that is written in the background, and the lines about it in the process's log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger("coe.records")

WARNING_INTERVAL_SECONDS = 60.0
"""At most one warning of the same effect about a store in this time."""


class Outage:
    """Keeps why a store failed last, and logs the failure and its end.

    `store` begins each line, and `counts` returns the counts that end it.
    """

    def __init__(self, store: str, counts: Callable[[], str]) -> None:
        self.cause: str | None = None
        """The reason why the store failed last; None while it works."""
        self._store, self._counts = store, counts
        self._next_warnings: dict[str, float] = {}
        self._reported = False

    def began(self, cause: str, effect: str = "") -> None:
        """Keep the cause, and log it with the effect if a warning is due."""
        self.cause = cause
        self._reported |= self.warn(cause, effect)

    def ended(self) -> None:
        """Forget the cause, and log the end of an outage that was logged."""
        self.cause = None
        if self._reported:
            self._reported = False
            logger.warning("%s: works again (%s)", self._store, self._counts())

    def warn(self, problem: str, effect: str = "") -> bool:
        """Log a problem, unless a warning of this effect was logged within WARNING_INTERVAL_SECONDS. Returns whether it
        is logged. Effects are few fixed texts."""
        if time.monotonic() < self._next_warnings.get(effect, 0.0):
            return False
        self._next_warnings[effect] = time.monotonic() + WARNING_INTERVAL_SECONDS
        logger.warning("%s: %s%s (%s)", self._store, problem, effect, self._counts())
        return True
