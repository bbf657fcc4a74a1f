"""Drains a process before it ends: first not ready, then no new requests, then the running ones end or are aborted."""

from __future__ import annotations

import asyncio

from coe.errors import Draining
from gateway.serving_state import ServingState

FINISH_SECONDS = 30.0
"""Time for running requests to end, after new ones are refused."""


class Drain:
    """`begin` starts the drain. For `lame_duck` seconds only readiness is off and requests are still served, so that a
    load balancer can notice; pass 0 if there is none."""

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
        """Ends every running request with an error."""
        for request in tuple(self._current.admission.active):
            request.cancel(Draining("this gateway ended before the answer was complete; ask again", retry_after=1.0))
