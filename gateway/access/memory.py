"""Counting the use of keys in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from coe.registry import ApiKey
from gateway.access.buckets import Bucket, Slots, Window, enough, level_of
from gateway.access.limits import Meter, Use, meters_of, refusal


class MemoryReservation(NamedTuple):
    """What was taken, from where, and in which windows."""

    counted: Sequence[tuple[Meter, Bucket | Window | Slots]]
    use: Use
    stamps: Sequence[int]


class MemoryLimiter:
    """A Limiter for a service of one process."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.degraded = False
        self._clock = clock
        self._accounts: dict[str, MemoryAccount] = {}

    def accounts(self, keys: Iterable[ApiKey]) -> Mapping[str, MemoryAccount]:
        known, self._accounts = self._accounts, {}
        for key in keys:
            if meters := meters_of(key.limits):
                account = known.get(key.name) or MemoryAccount(key.name, self._clock, self)
                account.declare(meters)
                self._accounts[key.name] = account
        return self._accounts

    def note(self, key: str, meter: Meter, stamp: int, amount: float) -> None:
        """So much was used, or returned where it is negative. Nothing is kept here."""

    def used(self, key: str, meter: Meter, stamp: int) -> float:
        """What was used before of a limit that is declared only now."""
        return 0.0


class MemoryAccount:
    """An Account counted in this process; `limiter` is told of all that changes."""

    def __init__(self, key: str, clock: Callable[[], float], limiter: MemoryLimiter) -> None:
        self._key = key
        self._clock = clock
        self._limiter = limiter
        self.meters: tuple[Meter, ...] = ()
        self._counted: tuple[tuple[Meter, Bucket | Window | Slots], ...] = ()

    def declare(self, meters: tuple[Meter, ...]) -> None:
        """Count by these from now on; what has been counted stays."""
        known = {meter.name: level for meter, level in self._counted}
        self._counted = tuple((meter, known.get(meter.name) or self._begun(meter)) for meter in meters)
        for meter, level in self._counted:
            level.limit = meter.limit
        self.meters = meters

    def _begun(self, meter: Meter) -> Bucket | Window | Slots:
        """A level from which what was used before is taken."""
        level = level_of(meter)
        if not isinstance(level, Slots):
            now = self._clock()
            left = level.left(now)
            level.sync(left - self._limiter.used(self._key, meter, level.stamp), now)
        return level

    def take_over(self, name: str, stamp: int, used: float) -> None:
        """Count so much as used in a window, which other processes use too."""
        now = self._clock()
        for meter, level in self._counted:
            if meter.name == name and isinstance(level, Window) and level.stamp == stamp:
                level.sync(meter.limit - used, now)

    async def take(self, use: Use) -> MemoryReservation:
        now, counted = self._clock(), self._counted
        for meter, level in counted:
            amount = use[meter.unit]
            if not enough(level.left(now), amount, level.limit):
                raise refusal(self._key, meter, amount, wait=level.wait(amount, now))
        stamps = []
        for meter, level in counted:
            level.take(use[meter.unit])
            stamps.append(level.stamp)
            if level.kind != "slots":
                self._limiter.note(self._key, meter, level.stamp, use[meter.unit])
        return MemoryReservation(counted, use, stamps)

    def settle(self, taken: MemoryReservation, used: Use) -> None:
        now, use = self._clock(), taken.use
        for (meter, level), stamp in zip(taken.counted, taken.stamps, strict=True):
            level.left(now)
            level.settle(use[meter.unit], used[meter.unit], stamp)
            if level.kind != "slots" and used[meter.unit] != use[meter.unit]:
                self._limiter.note(self._key, meter, stamp, used[meter.unit] - use[meter.unit])

    def left(self) -> list[float]:
        now = self._clock()
        return [level.left(now) for _, level in self._counted]
