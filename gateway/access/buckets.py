"""Counters of one limit in one process: how much remains, and when more will.

TokenBucket counts a limit per minute, CalendarWindow money per day or month, ConcurrencySlots requests at a time. The
memory limiter counts with them; the Redis limiter does while Redis is down. Times are Unix seconds.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, Literal, Protocol

from gateway.access.limits import Meter

MINUTE, DAY = 60.0, 86400.0
SLOT_RETRY_SECONDS = 1.0
"""Retry-After for a key whose concurrent requests are all in use: one of them may have ended by then."""
ROUNDING_ERROR = 1e-9
"""The part of a limit by which sums of floats may be wrong."""


class LimitCounter(Protocol):
    """The remaining amount of one limit. `window` numbers the calendar window that amounts belong to, 0 elsewhere."""

    limit: float
    window: int

    @property
    def kind(self) -> Literal["bucket", "window", "slots"]: ...

    def remaining(self, now: float) -> float:
        """Brings the counter up to date, and returns the rest; negative where more was used than allowed."""

    def consume(self, amount: float) -> None:
        """Subtracts an amount. Call `remaining` before."""

    def settle(self, reserved: float, used: float, window: int) -> None:
        """Returns what was reserved and not used, or charges what was used beyond it."""

    def retry_after(self, amount: float, now: float) -> float:
        """Seconds until `amount` is available if nothing else is consumed."""


class TokenBucket:
    """A limit per minute: full at first, refilled continuously."""

    kind: Final = "bucket"
    window = 0

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._tokens = limit
        self._updated = 0.0

    def remaining(self, now: float) -> float:
        if now > self._updated:
            self._tokens = min(self.limit, self._tokens + (now - self._updated) * self.limit / MINUTE)
        self._updated = now  # a clock that was set back starts from here
        return self._tokens

    def consume(self, amount: float) -> None:
        self._tokens -= amount

    def settle(self, reserved: float, used: float, window: int) -> None:
        self._tokens = min(self.limit, self._tokens + reserved - used)

    def set_remaining(self, amount: float, now: float) -> None:
        """Sets the rest, as reported by Redis or the usage file."""
        self._tokens, self._updated = min(self.limit, amount), now

    def retry_after(self, amount: float, now: float) -> float:
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


def new_counter(meter: Meter) -> TokenBucket | CalendarWindow | ConcurrencySlots:
    """A full counter for a meter."""
    if meter.name == "concurrent_requests":
        return ConcurrencySlots(meter.limit)
    if meter.unit == 2:
        return CalendarWindow(meter.limit, monthly=meter.name == "dollars_per_month")
    return TokenBucket(meter.limit)


def is_available(remaining: float, amount: float, limit: float) -> bool:
    """Whether `amount` may be consumed, up to rounding errors. A zero amount always may."""
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
