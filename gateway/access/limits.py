"""Limits of API keys: amounts, meters, the counters of one process, and the protocols of accounts and limiters.

A Meter is one declared limit of a key. A Limiter has an Account for every key with limits: in memory (MemoryLimiter),
in a file, or shared in Redis. TokenBucket counts a limit per minute, CalendarWindow money per day or month,
ConcurrencySlots requests at a time. The Redis limiter uses these counters while Redis is down. Times are Unix seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple, Protocol

from coe.errors import InvalidRequest, LimitReached, RequestError
from coe.registry import ApiKey, KeyLimits
from coe.terminal import dollars

MeterName = Literal[
    "concurrent_requests", "requests_per_minute", "tokens_per_minute", "dollars_per_day", "dollars_per_month"
]
_UNITS: dict[MeterName, int] = {
    "concurrent_requests": 0,
    "requests_per_minute": 0,
    "tokens_per_minute": 1,
    "dollars_per_day": 2,
    "dollars_per_month": 2,
}


MEMORY = "memory"
"""The value of `access.counters` that counts in process memory and persists the totals to SQLite in the state folder,
so that restarts keep budgets."""


class Amounts(NamedTuple):
    """The use or allowance of one request; each meter counts one of the three."""

    requests: float
    tokens: float
    dollars: float


@dataclass(frozen=True, slots=True)
class Meter:
    """One declared limit of one key. `unit` is the index in Amounts of what it counts."""

    name: MeterName
    limit: float
    unit: int


class Account(Protocol):
    """The remaining allowance of one API key."""

    @property
    def meters(self) -> tuple[Meter, ...]: ...

    async def reserve(self, amounts: Amounts) -> Any:
        """Reserves all of `amounts` or nothing. Returns the argument for `settle`. Raises LimitReached, or
        InvalidRequest for more than a limit ever allows."""

    async def extend(self, reservation: Any, amounts: Amounts) -> None:
        """Reserves the difference between `amounts` and the reserved ones, or nothing. Raises as `reserve` does."""

    def settle(self, reservation: Any, used: Amounts) -> None:
        """Replaces a reservation by what was `used`: returns the rest, or charges more. Releases the concurrent
        request. Call it once per reservation."""

    def remaining(self) -> list[float]:
        """The remainder of each meter, as far as this process knows; negative if more was used than estimated."""


class Limiter(Protocol):
    """Counts the use of keys. All implementations pass one test suite.

    `degraded` is True while counts that should be shared or stored are not.
    """

    degraded: bool

    def accounts(self, keys: Iterable[ApiKey]) -> Mapping[str, Account]:
        """The account of each key that has limits, by the key's name. Keys that were passed before keep their counts;
        counts of others are dropped."""


def meters_of(limits: KeyLimits) -> tuple[Meter, ...]:
    """The declared meters, in the order in which they are checked."""
    declared = ((name, unit, getattr(limits, name)) for name, unit in _UNITS.items())
    return tuple(Meter(name, float(limit), unit) for name, unit, limit in declared if limit is not None)


def limit_error(key: str, meter: Meter, amount: float, *, wait: float) -> RequestError:
    """The error for a meter that lacks `amount` for `wait` seconds, or always."""
    most = dollars(meter.limit) if meter.unit == 2 else f"{meter.limit:g}"
    limit = f"{meter.name} of the API key {key!r} ({most})"
    if amount > meter.limit:
        use = dollars(amount) if meter.unit == 2 else f"{amount:,.0f}"
        message = f"this request may use {use}, more than the {limit} ever allows; lower max_tokens"
        return InvalidRequest(message, param="max_tokens", code="request_exceeds_limit")
    seconds = f"{wait:,.0f}" if wait >= 100 else f"{max(wait, 0.001):.3g}"
    message = f"the {limit} is used up; try again in {seconds} s"
    return LimitReached(message, retry_after=wait)


MINUTE, DAY = 60.0, 86400.0
SLOT_RETRY_SECONDS = 1.0
"""Retry-After for a key whose concurrent requests are all in use: one of them may have ended by then."""
ROUNDING_ERROR = 1e-9
"""The part of a limit by which sums of floats may be wrong."""


class TokenBucket:
    """A limit per minute: full at first, refilled continuously. The other counters have the same methods."""

    kind: Final = "bucket"
    window = 0
    """The number of the calendar window that amounts belong to; 0 for counters without windows."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._tokens = limit
        self._updated = 0.0

    def remaining(self, now: float) -> float:
        """Updates the counter to `now`, and returns the remaining amount; negative if more was used than allowed."""
        if now > self._updated:
            self._tokens = min(self.limit, self._tokens + (now - self._updated) * self.limit / MINUTE)
        self._updated = now  # a clock that was set back starts from here
        return self._tokens

    def consume(self, amount: float) -> None:
        """Subtracts an amount. Call `remaining` before."""
        self._tokens -= amount

    def settle(self, reserved: float, used: float, window: int) -> None:
        """Releases the unused part of a reservation, or charges the use beyond it."""
        self._tokens = min(self.limit, self._tokens + reserved - used)

    def set_remaining(self, amount: float, now: float) -> None:
        """Sets the rest, as reported by Redis or the usage file."""
        self._tokens, self._updated = min(self.limit, amount), now

    def retry_after(self, amount: float, now: float) -> float:
        """Seconds until `amount` is available if nothing else is consumed."""
        return max(0.0, amount - self.remaining(now)) * MINUTE / self.limit


class CalendarWindow:
    """A limit per calendar day or month in UTC."""

    kind: Final = "window"

    def __init__(self, limit: float, *, monthly: bool) -> None:
        self.limit = limit
        self.window = 0
        self._monthly = monthly
        self._used = 0.0
        self._ends = 0.0

    def remaining(self, now: float) -> float:
        if now >= self._ends:
            self.window, self._ends = _window_at(now, monthly=self._monthly)
            self._used = 0.0
        return self.limit - self._used

    def consume(self, amount: float) -> None:
        self._used += amount

    def settle(self, reserved: float, used: float, window: int) -> None:
        if window == self.window:  # an amount of yesterday's window no longer counts
            self._used = max(0.0, self._used - reserved + used)

    def set_remaining(self, amount: float, now: float) -> None:
        """Sets the rest, as reported by Redis or the usage file."""
        self._used = self.limit - amount

    def retry_after(self, amount: float, now: float) -> float:
        return 0.0 if amount <= self.remaining(now) else self._ends - now


class ConcurrencySlots:
    """A limit on requests at the same time."""

    kind: Final = "slots"
    window = 0

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.used = 0.0

    def remaining(self, now: float) -> float:
        return self.limit - self.used

    def consume(self, amount: float) -> None:
        self.used += amount

    def settle(self, reserved: float, used: float, window: int) -> None:
        self.used -= reserved

    def retry_after(self, amount: float, now: float) -> float:
        return SLOT_RETRY_SECONDS


Counter = TokenBucket | CalendarWindow | ConcurrencySlots


def new_counter(meter: Meter) -> Counter:
    """A full counter for a meter."""
    if meter.name == "concurrent_requests":
        return ConcurrencySlots(meter.limit)
    if meter.unit == 2:
        return CalendarWindow(meter.limit, monthly=meter.name == "dollars_per_month")
    return TokenBucket(meter.limit)


def is_available(remaining: float, amount: float, limit: float) -> bool:
    """Returns whether `amount` may be consumed, up to rounding errors. A zero amount always may."""
    return amount <= 0 or amount <= remaining + ROUNDING_ERROR * limit


def _window_at(now: float, *, monthly: bool) -> tuple[int, float]:
    """Number and end of the day or month that contains `now`; numbers grow."""
    if not monthly:
        day = int(now // DAY)
        return day, (day + 1) * DAY
    date = datetime.fromtimestamp(now, UTC)
    month = date.year * 12 + date.month - 1
    end = datetime((month + 1) // 12, (month + 1) % 12 + 1, 1, tzinfo=UTC)
    return month, end.timestamp()


MeterKey = tuple[str, str]
"""The names of a key and of one of its meters."""


@dataclass(slots=True)
class UseChange:
    """The use of a limit by one process since its last change, which grows until it is written; negative where a
    reservation was returned."""

    meter: Meter
    window: int
    amount: float


PendingChanges = dict[MeterKey, dict[int, UseChange]]
"""Changes that are not written yet, by window."""


class MemoryReservation:
    """The counters of one reservation; by their position, the amount that is reserved and the window that it is of."""

    __slots__ = ("amounts", "counters", "windows")

    def __init__(self, counters: Sequence[tuple[Meter, Counter]]) -> None:
        self.counters = counters
        self.amounts = [0.0] * len(counters)
        self.windows = [0] * len(counters)

    def rebase(self, counters: Sequence[tuple[Meter, Counter]]) -> None:
        """Continues with the limits of a reload. Nothing is reserved of new ones; of removed ones, the reservation
        counts as used."""
        before, after = [counter for _, counter in self.counters], [counter for _, counter in counters]
        self.amounts, self.windows = carried_over(before, after, self.amounts, self.windows)
        self.counters = counters


def carried_over(
    before: Sequence[object], after: Sequence[object], amounts: Sequence[float], windows: Sequence[int]
) -> tuple[list[float], list[int]]:
    """Returns the amounts and windows of a reservation after a reload, in the order of the counters `after` it. New
    counters get 0."""
    reserved = {id(one): found for one, found in zip(before, zip(amounts, windows, strict=True), strict=True)}
    found = [reserved.get(id(one), (0.0, 0)) for one in after]
    return [amount for amount, _ in found], [window for _, window in found]


class MemoryLimiter:
    """A Limiter for a service of one process. It collects the changes of the use, which DurableLimiter writes."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.degraded = False
        self._clock = clock
        self._accounts: dict[str, MemoryAccount] = {}
        self._changes: PendingChanges = {}

    def accounts(self, keys: Iterable[ApiKey]) -> Mapping[str, MemoryAccount]:
        known, self._accounts = self._accounts, {}
        for key in keys:
            if meters := meters_of(key.limits):
                account = known.get(key.name) or MemoryAccount(key.name, self._clock, self)
                account.declare(meters)
                self._accounts[key.name] = account
        return self._accounts

    def record(self, key: str, meter: Meter, window: int, amount: float) -> None:
        """Remembers a use, or a return where the amount is negative, for the next write."""
        meter_key = key, meter.name
        if (changes := self._changes.get(meter_key)) is None:
            changes = self._changes[meter_key] = {}
        if (change := changes.get(window)) is None:
            changes[window] = UseChange(meter, window, amount)
        else:
            change.amount += amount

    def used(self, key: str, meter: Meter, window: int) -> float:
        """The use of a limit before its counter was created."""
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
        """A counter, reduced by the earlier use."""
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
        reservation = MemoryReservation(self._counters)
        self._add(reservation, amounts)
        return reservation

    async def extend(self, reservation: MemoryReservation, amounts: Amounts) -> None:
        self._add(reservation, amounts)

    def _add(self, reservation: MemoryReservation, amounts: Amounts) -> None:
        """Reserve what is missing. Most limits have nothing to add when the body is parsed."""
        if reservation.counters is not self._counters:
            reservation.rebase(self._counters)
        now, reserved, windows = self._clock(), reservation.amounts, reservation.windows
        missing: list[tuple[int, Meter, Counter, float]] = []
        for index, (meter, counter) in enumerate(reservation.counters):
            if amount := amounts[meter.unit] - reserved[index]:
                remaining = counter.remaining(now)
                if amount > remaining and not is_available(remaining, amount, counter.limit):
                    raise limit_error(self._key, meter, amount, wait=counter.retry_after(amount, now))
                missing.append((index, meter, counter, amount))
        for index, meter, counter, amount in missing:
            counter.consume(amount)
            if counter.kind != "slots":
                self._limiter.record(self._key, meter, counter.window, amount)
            reserved[index] = reserved[index] + amount if windows[index] == counter.window else amount
            windows[index] = counter.window

    def settle(self, reservation: MemoryReservation, used: Amounts) -> None:
        now = self._clock()
        for index, (meter, counter) in enumerate(reservation.counters):
            before, after = reservation.amounts[index], used[meter.unit]
            if counter.kind == "slots":
                counter.settle(before, after, 0)
            elif before != after:
                counter.remaining(now)
                window = reservation.windows[index] if before else counter.window
                counter.settle(before, after, window)
                self._limiter.record(self._key, meter, window, after - before)

    def remaining(self) -> list[float]:
        now = self._clock()
        return [counter.remaining(now) for _, counter in self._counters]
