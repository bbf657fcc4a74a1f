"""Runs the same step of concurrent requests in succession, so that its code and data stay in the processor's caches.

Cohort scheduling (Larus and Parkes 2002; SEDA, Welsh et al. 2001): before a step, a request yields to the event loop if
another one is ready to run. The event loop runs ready tasks in order, so that all of them take one step before the
first takes the next. A request that is alone never yields.

State that one request changes and the next one reads must change before the yield. So a request counts as load of its
expert from its decision on (`coe.core.PendingCall`).
"""

from __future__ import annotations

from collections.abc import Generator
from types import coroutine


class Cohort:
    """Counts the requests of a process that are ready to run: their task has not begun, or it has yielded here.

    Requests that wait for anything else (their body, a permit, an encoder pass, an expert) are not ready. So requests
    yield only if another one can run now, however many are in progress. A task that is cancelled before it begins would
    stay counted; the server cancels none.
    """

    __slots__ = ("ready",)

    def __init__(self) -> None:
        self.ready = 0

    @coroutine
    def yield_to_others(self) -> Generator[None]:
        """Let the other ready requests run first; return at once if there are none.

        Events of sockets that arrive meanwhile are handled afterwards.
        """
        if self.ready:
            self.ready += 1
            try:
                yield
            finally:  # also after a cancellation
                self.ready -= 1
