"""Leases: the part of a shared limit that one gateway fetches from Redis in advance and spends request by request.

A unit is either left in Redis, available in the lease of one gateway, or spent, so the sum never exceeds the limit: a
bucket refills up to what is leased. If a refill gets no reply, its outcome is unknown. Units that it may have granted
then count as spent, and units that it returned are not used again.

AmountLease holds tokens, requests a minute or money; SlotLease holds concurrent requests. `SharedAccount` has one lease
for each meter of a key.
"""

from __future__ import annotations

from gateway.access.limits import (
    CalendarWindow,
    ConcurrencySlots,
    Meter,
    TokenBucket,
    is_available,
    new_counter,
)

MAX_PREFETCH_SHARE = 0.01
"""The part of a limit that one gateway may hold without having spent it."""
SURPLUS_FACTOR = 2
"""A gateway returns a surplus once it exceeds the prefetch target of this many times the recent use. A smaller surplus
is soon needed again, since the target follows the traffic."""

Argument = str | float


class AmountLease:
    """A lease of tokens, requests a minute, or money. SlotLease has the same methods.

    `counter` holds the last reply of Redis, and counts in its place while Redis is down. `available` can be spent
    without a refill. `waiting` is the sum of the amounts that requests wait for. `refund` is the unused amount that
    Redis has to take back first, because the bucket may have refilled since it was reserved.
    """

    def __init__(self, meter: Meter, counter: TokenBucket | CalendarWindow) -> None:
        self.counter = counter
        self.declare(meter)
        self.window = 0
        self._has_windows = counter.kind == "window"
        self.available = 0.0
        self.waiting = 0.0
        self.refund = 0.0
        self._leased = 0.0  # the available amount that Redis knows: a bucket does not refill in its place
        self._unreported = 0.0  # positive: spent, to be reported to Redis; negative: unused, to be returned to it
        self._in_flight = 0.0  # in the running refill, with the opposite sign: positive: returned; negative: reported

    def declare(self, meter: Meter) -> None:
        """Replaces the meter; the counts stay."""
        self.meter, self.unit, self.counter.limit = meter, meter.unit, meter.limit

    @property
    def is_open(self) -> bool:
        """True if there is something to return or report to Redis."""
        return self.available > 0 or self.refund > 0 or self._unreported != 0

    def remaining(self, now: float) -> float:
        """The remainder for all gateways, as far as this one knows."""
        return min(self.counter.limit, self._update(now) + self.available + self.refund)

    def covers(self, amount: float, now: float) -> bool:
        """Returns whether `amount` can be spent without a refill."""
        if self._has_windows:
            self._update(now)
        return amount <= self.available or is_available(self.available, amount, self.counter.limit)

    def spend(self, amount: float) -> int:
        """Spends an available amount; returns the window that it belongs to."""
        self.available -= amount
        return self.window

    def spend_offline(self, amount: float) -> int:
        """Spends while Redis is down. The caller has checked the counter."""
        self.counter.consume(amount)
        self._report_later(amount)
        return self.window

    def settle(
        self, reserved: float, used: float, window: int | None, *, was_offline: bool, online: bool, now: float
    ) -> None:
        """Replaces the reserved amount by the used one. `window` is that of the reservation, None if nothing was
        reserved. `was_offline`: it was reserved while Redis was down. `online`: Redis is reachable now."""
        if self._has_windows or not online:
            self._update(now)
        if window is not None and window != self.window:
            return
        if not online:
            self.counter.settle(reserved, used, self.window)
        if was_offline or not online:
            self._report_later(used - reserved)
        elif (available := self.available + reserved - used) >= 0:
            self.available = available if self._has_windows else min(available, self._leased)
            self.refund += available - self.available
        else:
            self.available, self._unreported = 0.0, self._unreported - available

    def surplus(self, keep: float) -> float:
        """The amounts to return or report to Redis if `keep` stays available."""
        return max(0.0, self.available + self.refund - keep) + abs(self._unreported)

    def refill_arguments(self, amount: float, *, keep: float, now: float) -> list[Argument]:
        """Arguments of the refill script for this meter. They return what is available beyond `keep`, and request at
        least `amount` and, if Redis has enough, `keep`."""
        self._update(now)
        keep = max(amount, keep)
        returned = max(0.0, self.available - keep)
        self.available -= returned
        self._in_flight, self.refund, self._unreported = returned + self.refund - self._unreported, 0.0, 0.0
        least = max(0.0, amount - self.available)
        most = max(least, keep - self.available)
        meter = self.counter.kind, self.meter.name, self.counter.limit, self.window
        return [*meter, self.available, self.waiting, self._in_flight, least, most]

    def on_grant(self, granted: float, remaining: float, *, window: int, now: float) -> None:
        """Redis granted an amount; `remaining` is left there."""
        self._update(now)
        if window == self.window:
            self.available += granted
            self._leased = max(0.0, self.available - self.waiting)
            self.counter.set_remaining(remaining, now)

    def on_timeout(self) -> None:
        """Handle a refill that Redis did not answer."""
        self._unreported -= min(0.0, self._in_flight)  # a debt is reported again; what was returned is given up

    def go_offline(self, now: float) -> None:
        """Redis is down: continue alone from the last reply."""
        self._update(now)
        self.counter.settle(self.available + self.refund, 0.0, self.window)
        self._report_later(-self.available)
        self.available = self.refund = 0.0

    def _report_later(self, amount: float) -> None:
        """Report the amount to Redis once it is back. Buckets report nothing, since they will have refilled by then."""
        if self.counter.kind == "window":
            self._unreported += amount

    def _update(self, now: float) -> float:
        """Updates the counter, and drops what is available or unreported of a past window."""
        remaining = self.counter.remaining(now)
        if self.counter.window != self.window:
            self.window, self.available, self._unreported = self.counter.window, 0.0, 0.0
        return remaining


class SlotLease:
    """A lease of concurrent requests. A gateway reports how many it holds in all, so a refill may be lost or repeated.

    The slots in use are those of its counter; further held ones are available.
    """

    refund = 0.0

    def __init__(self, meter: Meter, counter: ConcurrencySlots) -> None:
        self.counter = counter
        self.declare(meter)
        self.window = 0
        self.waiting = 0.0
        self._held = 0.0
        self._left_in_redis = 0.0  # as of the last reply

    def declare(self, meter: Meter) -> None:
        self.meter, self.unit, self.counter.limit = meter, meter.unit, meter.limit

    @property
    def available(self) -> float:
        return self._held - self.counter.used

    @property
    def is_open(self) -> bool:
        return self._held > 0

    def remaining(self, now: float) -> float:
        return max(0.0, self.available) + self._left_in_redis

    def covers(self, amount: float, now: float) -> bool:
        return self._held - self.counter.used >= amount

    def spend(self, amount: float) -> int:
        self.counter.consume(amount)
        return self.window

    def spend_offline(self, amount: float) -> int:
        return self.spend(amount)

    def settle(
        self, reserved: float, used: float, window: int | None, *, was_offline: bool, online: bool, now: float
    ) -> None:
        self.counter.settle(reserved, used, self.window)

    def surplus(self, keep: float) -> float:
        return max(0.0, self.available - keep)

    def refill_arguments(self, amount: float, *, keep: float, now: float) -> list[Argument]:
        keep = max(amount, keep)
        available = max(0.0, min(self.available, keep))
        self._held = self.counter.used + available
        least = max(0.0, amount - available)
        most = max(least, keep - available)
        return [self.counter.kind, self.meter.name, self.counter.limit, 0, self._held, 0, 0, least, most]

    def on_grant(self, granted: float, remaining: float, *, window: int, now: float) -> None:
        self._held += granted
        self._left_in_redis = remaining

    def on_timeout(self) -> None:
        """The next refill reports how many are held."""

    def go_offline(self, now: float) -> None:
        self._held = 0.0


Lease = AmountLease | SlotLease


def new_lease(meter: Meter) -> Lease:
    """An empty lease for a meter."""
    counter = new_counter(meter)
    return SlotLease(meter, counter) if isinstance(counter, ConcurrencySlots) else AmountLease(meter, counter)


def prefetch_target(lease: Lease, waiting: float, recent: float) -> float:
    """The amount that a busy gateway wants available: what requests wait for, and ahead of that what the last interval
    used, up to MAX_PREFETCH_SHARE; whole requests only."""
    ahead = min(lease.meter.limit * MAX_PREFETCH_SHARE, recent)
    return waiting + (ahead if lease.unit else ahead // 1)


def has_surplus(lease: Lease, recent: float) -> bool:
    """Returns whether the gateway has to return or report something. `recent` is what the last interval used."""
    return lease.surplus(prefetch_target(lease, 0.0, SURPLUS_FACTOR * recent)) > 0
