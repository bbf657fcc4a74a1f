"""From a text to its posterior: the router's quick answer, and a closer look where it is unsure and it matters.

Whether there is time for a router's slower look: under load its quick answer must do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import replace

from coe.core import LOAD_SHED, Prediction, Router
from coe.routing.overlay import Overlays

TOGETHER = 4
"""Looks under way at a time; with two threads the last of them waits for one other."""
LONG = 0.02
"""Seconds: a look that takes longer, all waiting included, says that the processors are busy."""
REST = 4.0
"""So many times as long as that look took there is none then, which leaves a busy process four fifths of its time."""


class LoadShedding:
    """Counts the looks of one process. Not thread-safe: for the event loop."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._under_way = 0
        self._resting_until = 0.0

    def __bool__(self) -> bool:
        """Whether one more look may begin."""
        return self._under_way < TOGETHER and self._clock() >= self._resting_until

    @contextmanager
    def look(self) -> Iterator[None]:
        """Around one look, from its beginning to its result."""
        began = self._clock()
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            now = self._clock()
            if now - began > LONG:
                self._resting_until = now + REST * (now - began)


SHORT_CIRCUIT = "short_circuit"
"""The stage of an unsure quick answer where the same expert would answer whatever a look found."""


class Classifier:
    """A router with the tenants' overlays on it. A look may take `encoder_timeout` seconds: None without end, 0: there
    is none. For one event loop; owns none of its parts."""

    def __init__(self, router: Router, *, overlays: Overlays, threads: Executor, encoder_timeout: float | None) -> None:
        self._router = router
        self._overlays = overlays
        self._threads = threads
        self._encoder_timeout = encoder_timeout
        self._leisure = LoadShedding()

    async def classify(self, text: str, tenant: str | None, *, at_stake: Callable[[Prediction], bool]) -> Prediction:
        """The posterior, with the tenant's overlay where it has one. Only a look at the sentence encoder leaves the
        event loop; `at_stake` says of an unsure answer whether it is worth one, and there is none while too many wait
        for one."""
        found = self._router.predict_fast(text, force=True)
        assert found is not None
        given = self._overlays.applied(found, tenant)
        if found.stage != LOAD_SHED:
            return given
        if not at_stake(given):
            return replace(given, stage=SHORT_CIRCUIT)
        if self._encoder_timeout == 0 or not self._leisure:
            return given
        looked = await self._look(text)
        return given if looked is None else self._overlays.applied(looked, tenant)

    def overlaid(self, prediction: Prediction, tenant: str | None) -> Prediction:
        """A posterior of the router's as the tenant has it."""
        return self._overlays.applied(prediction, tenant)

    async def _look(self, text: str) -> Prediction | None:
        """What the sentence encoder makes of it; None where that takes too long."""
        with self._leisure.look(), suppress(TimeoutError):
            async with asyncio.timeout(self._encoder_timeout):
                look = asyncio.get_running_loop().run_in_executor(self._threads, self._router.predict, (text,))
                (prediction,) = await look
                return prediction
        return None
