"""Counts the use of API keys in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from coe.registry import ApiKey
from gateway.access.buckets import CalendarWindow, ConcurrencySlots, TokenBucket, is_available, new_counter
from gateway.access.limits import Amounts, Meter, limit_error, meters_of

Counter = TokenBucket | CalendarWindow | ConcurrencySlots


class MemoryReservation(NamedTuple):
    """Reserved amounts, the counters that they were taken from, and the windows of these."""

    counters: Sequence[tuple[Meter, Counter]]
    amounts: Amounts
    windows: Sequence[int]


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

    def record(self, key: str, meter: Meter, window: int, amount: float) -> None:
        """Called with every amount that was used, or returned where it is negative. Does nothing here."""

    def used(self, key: str, meter: Meter, window: int) -> float:
        """What was used of a limit before its counter was created."""
        return 0.0


class MemoryAccount:
    """An Account counted in this process; it reports every change to `limiter`."""

    def __init__(self, key: str, clock: Callable[[], float], limiter: MemoryLimiter) -> None:
        self._key = key
        self._clock = clock
        self._limiter = limiter
        self.meters: tuple[Meter, ...] = ()
        self._counters: tuple[tuple[Meter, Counter], ...] = ()

    def declare(self, meters: tuple[Meter, ...]) -> None:
        """Replaces the meters. Counts of meters that stay are kept."""
        known = {meter.name: counter for meter, counter in self._counters}
        self._counters = tuple((meter, known.get(meter.name) or self._new_counter(meter)) for meter in meters)
        for meter, counter in self._counters:
            counter.limit = meter.limit
        self.meters = meters

    def _new_counter(self, meter: Meter) -> Counter:
        """A counter less what was used before."""
        counter = new_counter(meter)
        if not isinstance(counter, ConcurrencySlots):
            now = self._clock()
            remaining = counter.remaining(now)
            counter.set_remaining(remaining - self._limiter.used(self._key, meter, counter.window), now)
        return counter

    def set_used(self, name: str, window: int, used: float) -> None:
        """Sets what all processes together used of a calendar window."""
        now = self._clock()
        for meter, counter in self._counters:
            if meter.name == name and isinstance(counter, CalendarWindow) and counter.window == window:
                counter.set_remaining(meter.limit - used, now)

    async def reserve(self, amounts: Amounts) -> MemoryReservation:
        now, counters = self._clock(), self._counters
        for meter, counter in counters:
            amount = amounts[meter.unit]
            if not is_available(counter.remaining(now), amount, counter.limit):
                raise limit_error(self._key, meter, amount, wait=counter.retry_after(amount, now))
        windows = []
        for meter, counter in counters:
            counter.consume(amounts[meter.unit])
            windows.append(counter.window)
            if counter.kind != "slots":
                self._limiter.record(self._key, meter, counter.window, amounts[meter.unit])
        return MemoryReservation(counters, amounts, windows)

    def settle(self, reservation: MemoryReservation, used: Amounts) -> None:
        now, reserved = self._clock(), reservation.amounts
        for (meter, counter), window in zip(reservation.counters, reservation.windows, strict=True):
            counter.remaining(now)
            counter.settle(reserved[meter.unit], used[meter.unit], window)
            if counter.kind != "slots" and used[meter.unit] != reserved[meter.unit]:
                self._limiter.record(self._key, meter, window, used[meter.unit] - reserved[meter.unit])

    def remaining(self) -> list[float]:
        now = self._clock()
        return [counter.remaining(now) for _, counter in self._counters]
