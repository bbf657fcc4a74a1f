"""From a text to its posterior: the router's quick answer, and a closer look where it is unsure and it matters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import replace

from coe.core import HURRIED, Prediction, Router
from coe.leisure import Leisure
from coe.routing.overlay import Overlays

SETTLED = "settled"
"""The stage of an unsure quick answer where the same expert would answer whatever a look found."""


class Classifier:
    """A router with the tenants' overlays on it. A look may take `look_timeout` seconds: None without end, 0: there is
    none. For one event loop; owns none of its parts."""

    def __init__(self, router: Router, *, overlays: Overlays, threads: Executor, look_timeout: float | None) -> None:
        self._router = router
        self._overlays = overlays
        self._threads = threads
        self._look_timeout = look_timeout
        self._leisure = Leisure()

    async def classify(self, text: str, tenant: str | None, *, at_stake: Callable[[Prediction], bool]) -> Prediction:
        """The posterior, with the tenant's overlay where it has one. Only a look at the sentence encoder leaves the
        event loop; `at_stake` says of an unsure answer whether it is worth one, and there is none while too many wait
        for one."""
        found = self._router.peek(text, hurried=True)
        assert found is not None
        given = self._overlays.applied(found, tenant)
        if found.stage != HURRIED:
            return given
        if not at_stake(given):
            return replace(given, stage=SETTLED)
        if self._look_timeout == 0 or not self._leisure:
            return given
        looked = await self._look(text)
        return given if looked is None else self._overlays.applied(looked, tenant)

    def overlaid(self, prediction: Prediction, tenant: str | None) -> Prediction:
        """A posterior of the router's as the tenant has it."""
        return self._overlays.applied(prediction, tenant)

    async def _look(self, text: str) -> Prediction | None:
        """What the sentence encoder makes of it; None where that takes too long."""
        with self._leisure.look(), suppress(TimeoutError):
            async with asyncio.timeout(self._look_timeout):
                look = asyncio.get_running_loop().run_in_executor(self._threads, self._router.predict, (text,))
                (prediction,) = await look
                return prediction
        return None
