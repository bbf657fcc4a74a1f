"""Counting the use of keys in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from coe.registry import ApiKey
from gateway.access.levels import Level, enough, level_of
from gateway.access.limits import Meter, Use, meters_of, refusal


class Taken(NamedTuple):
    """What was taken, from where, and in which windows."""

    counted: Sequence[tuple[Meter, Level]]
    use: Use
    stamps: Sequence[int]


class MemoryLimiter:
    """A Limiter for a service of one process."""

    degraded = False

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._accounts: dict[str, MemoryAccount] = {}

    def accounts(self, keys: Iterable[ApiKey]) -> Mapping[str, MemoryAccount]:
        known, self._accounts = self._accounts, {}
        for key in keys:
            if meters := meters_of(key.limits):
                account = known.get(key.name) or MemoryAccount(key.name, self._clock)
                account.declare(meters)
                self._accounts[key.name] = account
        return self._accounts


class MemoryAccount:
    """An Account that lives and dies with the process."""

    def __init__(self, key: str, clock: Callable[[], float]) -> None:
        self._key = key
        self._clock = clock
        self.meters: tuple[Meter, ...] = ()
        self._counted: tuple[tuple[Meter, Level], ...] = ()

    def declare(self, meters: tuple[Meter, ...]) -> None:
        """Count by these from now on; what has been counted stays."""
        known = {meter.name: level for meter, level in self._counted}
        self._counted = tuple((meter, known.get(meter.name) or level_of(meter)) for meter in meters)
        for meter, level in self._counted:
            level.limit = meter.limit
        self.meters = meters

    async def take(self, use: Use) -> Taken:
        now, counted = self._clock(), self._counted
        for meter, level in counted:
            amount = use[meter.unit]
            if not enough(level.left(now), amount, level.limit):
                raise refusal(self._key, meter, amount, wait=level.wait(amount, now))
        stamps = []
        for meter, level in counted:
            level.take(use[meter.unit])
            stamps.append(level.stamp)
        return Taken(counted, use, stamps)

    def settle(self, taken: Taken, used: Use) -> None:
        now, use = self._clock(), taken.use
        for (meter, level), stamp in zip(taken.counted, taken.stamps, strict=True):
            level.left(now)
            level.settle(use[meter.unit], used[meter.unit], stamp)

    def left(self) -> list[float]:
        now = self._clock()
        return [level.left(now) for _, level in self._counted]
