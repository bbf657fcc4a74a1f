"""What one gateway holds of one shared limit: taken from all gateways' common level at once, spent one by one.

A unit is either left in the common level, spare in one gateway, or spent: so the sum never exceeds the limit. What an
unanswered step may have taken counts as spent, what it may have given back as given back.
"""

from __future__ import annotations

from typing import Protocol

from gateway.access.buckets import Bucket, Level, Slots, Window, enough, level_of
from gateway.access.limits import Meter, Use

SHARE = 0.01
"""The part of a limit that one gateway may hold without having spent it."""

Argument = str | float


class TokenLease(Protocol):
    """Of one meter. `level` counts alone while Redis is away."""

    meter: Meter
    unit: int
    stamp: int

    @property
    def level(self) -> Level: ...

    @property
    def stand_in(self) -> float:
        """What can be spent without asking."""

    @property
    def holds(self) -> bool:
        """Whether the others are to hear of something here, some time."""

    def declare(self, meter: Meter) -> None:
        """Count by this from now on."""

    def left(self, now: float) -> float:
        """For all gateways, as far as is known here."""

    def covers(self, amount: float, now: float) -> bool: ...

    def spend(self, amount: float) -> int:
        """Take what is spare; returns the window it belongs to."""

    def spend_alone(self, amount: float) -> int:
        """The same while Redis is away; follows a look at the level."""

    def settle(self, taken: float, used: float, stamp: int, *, alone: bool, shared: bool, now: float) -> None:
        """Correct what was taken (alone or not) by what was used; `shared`: the gateways count together now."""

    def surplus(self, keep: float) -> float:
        """What the others should have or hear of if `keep` stays."""

    def order(self, amount: float, *, keep: float, now: float) -> list[Argument]:
        """A step's arguments: have `amount` here, better `keep`, and give back what is beyond."""

    def land(self, taken: float, left: float, *, stamp: int, now: float) -> None: ...

    def lose(self) -> None: ...

    def detach(self, now: float) -> None:
        """Redis is away: go on alone, with what was last heard."""


class AmountLease:
    """Of tokens, requests a minute, or money."""

    def __init__(self, meter: Meter, level: Bucket | Window) -> None:
        self.level = level
        self.declare(meter)
        self.stamp = 0
        self.stand_in = 0.0
        self._owed = 0.0  # spent and not told yet; negative: to be given back
        self._told = 0.0

    def declare(self, meter: Meter) -> None:
        self.meter, self.unit, self.level.limit = meter, meter.unit, meter.limit

    @property
    def holds(self) -> bool:
        return self.stand_in > 0 or self._owed != 0

    def left(self, now: float) -> float:
        return self._look(now) + self.stand_in

    def covers(self, amount: float, now: float) -> bool:
        self._look(now)
        return enough(self.stand_in, amount, self.level.limit)

    def spend(self, amount: float) -> int:
        self.stand_in -= amount
        return self.stamp

    def spend_alone(self, amount: float) -> int:
        self.level.take(amount)
        self._owe(amount)
        return self.stamp

    def settle(self, taken: float, used: float, stamp: int, *, alone: bool, shared: bool, now: float) -> None:
        self._look(now)
        if stamp != self.stamp:
            return
        if not shared:
            self.level.settle(taken, used, stamp)
        if alone or not shared:
            self._owe(used - taken)
        elif (stand_in := self.stand_in + taken - used) >= 0:
            self.stand_in = stand_in
        else:
            self.stand_in, self._owed = 0.0, self._owed - stand_in

    def surplus(self, keep: float) -> float:
        return max(0.0, self.stand_in - keep) + abs(self._owed)

    def order(self, amount: float, *, keep: float, now: float) -> list[Argument]:
        self._look(now)
        keep = max(amount, keep)
        back = max(0.0, self.stand_in - keep)
        self.stand_in -= back
        self._told, self._owed = back - self._owed, 0.0
        least = max(0.0, amount - self.stand_in)
        kind, limit = self.level.kind, self.level.limit
        return [kind, self.meter.name, limit, self.stamp, self._told, least, max(least, keep - self.stand_in)]

    def land(self, taken: float, left: float, *, stamp: int, now: float) -> None:
        self._look(now)
        if stamp == self.stamp:
            self.stand_in += taken
            self.level.sync(left, now)

    def lose(self) -> None:
        self._owed -= min(0.0, self._told)  # a debt is told again, what was given back is gone

    def detach(self, now: float) -> None:
        self._look(now)
        self.level.settle(self.stand_in, 0.0, self.stamp)
        self._owe(-self.stand_in)
        self.stand_in = 0.0

    def _owe(self, amount: float) -> None:
        """Redis is to hear of it when it is back; not for buckets, which have refilled by then."""
        if self.level.kind == "window":
            self._owed += amount

    def _look(self, now: float) -> float:
        """Bring the level up to date; what is spare or owed from yesterday is void."""
        left = self.level.left(now)
        if self.level.stamp != self.stamp:
            self.stamp, self.stand_in, self._owed = self.level.stamp, 0.0, 0.0
        return left


class SlotLease:
    """Of requests at the same time. A gateway tells how many it holds in all, so a step may be lost or repeated."""

    def __init__(self, meter: Meter, level: Slots) -> None:
        self.level = level
        self.declare(meter)
        self.stamp = 0
        self._held = 0.0
        self._others = 0.0  # left when last heard

    def declare(self, meter: Meter) -> None:
        self.meter, self.unit, self.level.limit = meter, meter.unit, meter.limit

    @property
    def stand_in(self) -> float:
        return self._held - self.level.used

    @property
    def holds(self) -> bool:
        return self._held > 0

    def left(self, now: float) -> float:
        return max(0.0, self.stand_in) + self._others

    def covers(self, amount: float, now: float) -> bool:
        return self.stand_in >= amount

    def spend(self, amount: float) -> int:
        self.level.take(amount)
        return self.stamp

    def spend_alone(self, amount: float) -> int:
        return self.spend(amount)

    def settle(self, taken: float, used: float, stamp: int, *, alone: bool, shared: bool, now: float) -> None:
        self.level.settle(taken, used, stamp)

    def surplus(self, keep: float) -> float:
        return max(0.0, self.stand_in - keep)

    def order(self, amount: float, *, keep: float, now: float) -> list[Argument]:
        keep = max(amount, keep)
        stand_in = max(0.0, min(self.stand_in, keep))
        self._held = self.level.used + stand_in
        least = max(0.0, amount - stand_in)
        return [self.level.kind, self.meter.name, self.level.limit, 0, self._held, least, max(least, keep - stand_in)]

    def land(self, taken: float, left: float, *, stamp: int, now: float) -> None:
        self._held += taken
        self._others = left

    def lose(self) -> None:
        """The next step tells how many are held."""

    def detach(self, now: float) -> None:
        self._held = 0.0


def stock_of(meter: Meter) -> TokenLease:
    """A fresh stock for a meter."""
    level = level_of(meter)
    return SlotLease(meter, level) if isinstance(level, Slots) else AmountLease(meter, level)


def keep_of(stock: TokenLease, demand: Use, recent: Use) -> float:
    """How much a busy gateway wants here: what is asked for now, and what the last moment used, within its share; of
    requests whole ones."""
    ahead = min(stock.meter.limit * SHARE, recent[stock.unit])
    return demand[stock.unit] + (ahead if stock.unit else ahead // 1)
