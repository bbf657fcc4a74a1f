"""How a process leaves: first it says that it is not ready, then it takes nothing new, and what is under way ends."""

from __future__ import annotations

import asyncio

from coe.errors import Draining
from gateway.serving_state import ServingState

FINISH_SECONDS = 30.0
"""Seconds that answers under way have to end, counted from when nothing new is taken."""


class Drain:
    """`begin` starts the steps. For `lame_duck` seconds only readiness is off and work is still done, so that nothing
    is lost to a balancer that has not looked yet; 0 where none is in front."""

    def __init__(self, current: ServingState, *, lame_duck: float, finish: float = FINISH_SECONDS) -> None:
        self._current = current
        self._lame_duck = lame_duck
        self._finish = finish

    def begin(self) -> None:
        """May be called again; the first call counts."""
        if self._current.leaving:
            return
        self._current.leaving = True
        loop = asyncio.get_running_loop()
        loop.call_later(self._lame_duck, self._stop_accepting)
        loop.call_later(self._lame_duck + self._finish, self.abort)

    def _stop_accepting(self) -> None:
        self._current.admission.closed = True

    def abort(self) -> None:
        """End every request under way with the error that this gateway ends."""
        for cutoff in tuple(self._current.admission.under_way):
            cutoff.cut(Draining("this gateway ended before the answer was complete; ask again", retry_after=1.0))
