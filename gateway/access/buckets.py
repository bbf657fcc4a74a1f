"""The arithmetic of one limit in one process: how much is left, and when there will be more."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, Literal, Protocol

from gateway.access.limits import Meter

MINUTE, DAY = 60.0, 86400.0
SLOT_WAIT = 1.0
"""Seconds after which a refused client may find that one of the key's own requests has ended."""
ROUNDING = 1e-9
"""The part of a limit by which sums may be off."""


class Level(Protocol):
    """How much is left of one limit. Times are Unix seconds; `stamp` numbers the window that amounts belong to."""

    limit: float
    stamp: int

    @property
    def kind(self) -> Literal["bucket", "window", "slots"]: ...

    def left(self, now: float) -> float: ...

    def take(self, amount: float) -> None:
        """Follows a look at `left`, which brings the level up to date."""

    def settle(self, taken: float, used: float, stamp: int) -> None:
        """Give back what was taken and not used, or charge what was used beyond it."""

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` is there if nothing else is taken."""


class Bucket:
    """A limit per minute: full at first, refilled evenly."""

    kind: Final = "bucket"
    stamp = 0

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._level = limit
        self._at = 0.0

    def left(self, now: float) -> float:
        if now > self._at:
            self._level = min(self.limit, self._level + (now - self._at) * self.limit / MINUTE)
        self._at = now  # a clock that was set back starts from here
        return self._level

    def take(self, amount: float) -> None:
        self._level -= amount

    def settle(self, taken: float, used: float, stamp: int) -> None:
        self._level = min(self.limit, self._level + taken - used)

    def sync(self, left: float, now: float) -> None:
        """Make it what was heard."""
        self._level, self._at = min(self.limit, left), now

    def wait(self, amount: float, now: float) -> float:
        return max(0.0, amount - self.left(now)) * MINUTE / self.limit


class Window:
    """A limit per calendar day or month in UTC."""

    kind: Final = "window"

    def __init__(self, limit: float, *, monthly: bool) -> None:
        self.limit = limit
        self.stamp = 0
        self._monthly = monthly
        self._spent = 0.0
        self._ends = 0.0

    def left(self, now: float) -> float:
        if now >= self._ends:
            self.stamp, self._ends = _window(now, monthly=self._monthly)
            self._spent = 0.0
        return self.limit - self._spent

    def take(self, amount: float) -> None:
        self._spent += amount

    def settle(self, taken: float, used: float, stamp: int) -> None:
        if stamp == self.stamp:  # what was taken yesterday is settled with yesterday, which is over
            self._spent = max(0.0, self._spent - taken + used)

    def sync(self, left: float, now: float) -> None:
        """Make it what was heard."""
        self._spent = self.limit - left

    def wait(self, amount: float, now: float) -> float:
        return 0.0 if amount <= self.left(now) else self._ends - now


class Slots:
    """A limit on requests at the same time."""

    kind: Final = "slots"
    stamp = 0

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.used = 0.0

    def left(self, now: float) -> float:
        return self.limit - self.used

    def take(self, amount: float) -> None:
        self.used += amount

    def settle(self, taken: float, used: float, stamp: int) -> None:
        self.used -= taken

    def wait(self, amount: float, now: float) -> float:
        return SLOT_WAIT


def level_of(meter: Meter) -> Bucket | Window | Slots:
    """A fresh level for a meter."""
    if meter.name == "concurrent_requests":
        return Slots(meter.limit)
    if meter.unit == 2:
        return Window(meter.limit, monthly=meter.name == "dollars_per_month")
    return Bucket(meter.limit)


def enough(left: float, amount: float, limit: float) -> bool:
    """Whether `amount` may be taken, forgiving what rounding lost. Nothing may be at any time."""
    return amount <= 0 or amount <= left + ROUNDING * limit


def _window(now: float, *, monthly: bool) -> tuple[int, float]:
    """Number and end of the day or month that `now` lies in; numbers grow."""
    if not monthly:
        day = int(now // DAY)
        return day, (day + 1) * DAY
    date = datetime.fromtimestamp(now, UTC)
    month = date.year * 12 + date.month - 1
    end = datetime((month + 1) // 12, (month + 1) % 12 + 1, 1, tzinfo=UTC)
    return month, end.timestamp()
