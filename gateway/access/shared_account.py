"""One API key's account that several gateways spend from, through a lease of each meter.

A request is paid from the leases without Redis where they cover it. Otherwise it waits for a refill: one script call
that reports what was spent, returns the surplus, and grants more. All waiting requests share one refill. While Redis is
down the account counts by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from gateway.access.leases import Argument, Lease, has_surplus, new_lease, prefetch_target
from gateway.access.limits import Amounts, Meter, carried_over, is_available, limit_error

SLOT_LEASE_SECONDS = 10.0
"""Seconds after which the slots of a gateway that sends nothing are free again."""
PACE_INTERVAL_SECONDS = 0.5
"""The use of the last interval is prefetched for the next, so a busy key needs about two refills a second."""
IDLE_SECONDS = 1.0
"""Seconds without a request after which nothing is prefetched."""
REFUSAL_CACHE_SECONDS = 0.1
"""Seconds for which a shortage in Redis refuses requests without another refill."""
Missing = Mapping[Lease, float]
"""Amounts that a request still needs, by lease. Not by unit: a limit that a reload added may lack what others have."""


class RedisUnavailable(Exception):
    """Redis did not reply in time, or with an error."""


class SharedContext(Protocol):
    """State that the accounts of one gateway share."""

    degraded: bool

    def now(self) -> float: ...

    def mark_open(self, account: SharedAccount) -> None:
        """The account may hold something to return later."""

    async def refill(self, key: str, arguments: list[Argument]) -> list[float]:
        """Runs the refill script. Raises RedisUnavailable, after which all accounts are offline."""


class SharedReservation:
    """A reservation: of `leases[i]`, the amount `amounts[i]` is reserved in the window `windows[i]`.

    `offline`: Redis was down at the last change.
    """

    __slots__ = ("amounts", "leases", "offline", "windows")

    def __init__(self, leases: tuple[Lease, ...]) -> None:
        self.leases = leases
        self.amounts = [0.0] * len(leases)
        self.windows = [0] * len(leases)
        self.offline = False

    def rebase(self, leases: tuple[Lease, ...]) -> None:
        """Continues with the limits of a reload, as MemoryReservation does."""
        self.amounts, self.windows = carried_over(self.leases, leases, self.amounts, self.windows)
        self.leases = leases


class Shortage(NamedTuple):
    """The lease that a refill could not grant enough, the missing amount, and until when that is assumed to hold."""

    lease: Lease
    missing: float
    until: float


class SharedAccount:
    """An Account over Redis, with one refill at a time."""

    def __init__(self, key: str, context: SharedContext) -> None:
        self._key = key
        self._context = context
        self._leases: tuple[Lease, ...] = ()
        self._refill: asyncio.Future[bool] | None = None
        self._use: list[float] = []  # in the current interval, by lease
        self._last_use: list[float] = []
        self._interval_start = self._last_refill = 0.0
        self._shortage: Shortage | None = None
        self.offline = context.degraded
        """True while Redis is down and this account counts by itself."""

    @property
    def meters(self) -> tuple[Meter, ...]:
        return tuple(lease.meter for lease in self._leases)

    def declare(self, meters: tuple[Meter, ...]) -> None:
        """Replaces the meters. Counts of meters that stay are kept."""
        known = {lease.meter.name: lease for lease in self._leases}
        self._leases = tuple(known.get(meter.name) or new_lease(meter) for meter in meters)
        for meter, lease in zip(meters, self._leases, strict=True):
            lease.declare(meter)
        self._use, self._last_use = [0.0] * len(meters), [0.0] * len(meters)

    def remaining(self) -> list[float]:
        now = self._context.now()
        return [lease.remaining(now) for lease in self._leases]

    # --------------------------------------------------------------------------------------------- reservations

    async def reserve(self, amounts: Amounts) -> SharedReservation:
        reservation = SharedReservation(self._leases)
        await self.extend(reservation, amounts)
        return reservation

    async def extend(self, reservation: SharedReservation, amounts: Amounts) -> None:
        while (missing := self._spend(reservation, amounts)) is not None:
            await self._wait_for_refill(missing)

    def _spend(self, reservation: SharedReservation, amounts: Amounts) -> Missing | None:
        """Reserves what is missing of `amounts`, and returns None. If a lease does not cover it, reserves nothing, and
        returns what is missing. Most limits have nothing to add when the body is parsed."""
        if reservation.leases is not self._leases:
            reservation.rebase(self._leases)
        now, offline, reserved = self._context.now(), self.offline, reservation.amounts
        missing: list[tuple[int, Lease, float]] = []
        is_covered = True
        for index, lease in enumerate(reservation.leases):
            if amount := amounts[lease.unit] - reserved[index]:
                missing.append((index, lease, amount))
                is_covered = is_covered and (offline or lease.covers(amount, now))
        if not missing:  # no lease is needed, so this gateway may not have heard from Redis for long
            is_covered = offline or not self._must_hear_from_redis(now)
        if not is_covered:
            return {lease: amount for _, lease, amount in missing if amount > 0}
        if offline:
            self._check_offline(missing, now)
        if now - self._interval_start > PACE_INTERVAL_SECONDS:
            self._last_use, self._use, self._interval_start = self._use, [0.0] * len(reserved), now
        for index, lease, amount in missing:
            window = lease.spend_offline(amount) if offline else lease.spend(amount)
            reserved[index] = reserved[index] + amount if reservation.windows[index] == window else amount
            reservation.windows[index] = window
            self._use[index] += amount
        if missing:
            reservation.offline = offline
        return None

    def _check_offline(self, missing: Iterable[tuple[int, Lease, float]], now: float) -> None:
        """Raises LimitReached if the counts of this process lack an amount."""
        for _, lease, amount in missing:
            counter = lease.counter
            if not is_available(counter.remaining(now), amount, counter.limit):
                raise limit_error(self._key, lease.meter, amount, wait=counter.retry_after(amount, now))

    def settle(self, reservation: SharedReservation, used: Amounts) -> None:
        now, online, was_offline = self._context.now(), not self.offline, reservation.offline
        for index, lease in enumerate(reservation.leases):
            before, after = reservation.amounts[index], used[lease.unit]
            if before != after or lease.counter.kind == "slots":
                window = reservation.windows[index] if before else None
                lease.settle(before, after, window, was_offline=was_offline, online=online, now=now)
        self._context.mark_open(self)

    async def _wait_for_refill(self, amounts: Missing) -> None:
        """Waits for the running refill, or starts one. Raises LimitReached during a known shortage."""
        if self._shortage is not None:
            now = self._context.now()
            lease, shortage, until = self._shortage
            amount = amounts.get(lease, 0.0)
            missing = amount - lease.available - lease.refund
            if now < until and missing >= shortage:
                raise limit_error(self._key, lease.meter, amount, wait=lease.counter.retry_after(missing, now))
        for lease, amount in amounts.items():
            lease.waiting += amount
        try:
            # A client that disconnects does not stop the refill: what it grants is available to the next request.
            await asyncio.shield(self._refill or self._start_refill(amounts))
        finally:
            for lease, amount in amounts.items():
                lease.waiting -= amount

    # --------------------------------------------------------------------------------------------- refills

    @property
    def is_open(self) -> bool:
        """True if there is something to return or report to Redis."""
        return any(lease.is_open for lease in self._leases)

    async def return_surplus(self, *, everything: bool = False) -> None:
        """Reports what was spent and returns what is not needed, `everything` at the end of the process. Renews the
        slots in use where needed."""
        now = self._context.now()
        surplus = any(map(has_surplus, self._leases, self._recent_use(now)))
        if everything or surplus or self._must_hear_from_redis(now):
            while self._refill:
                await asyncio.shield(self._refill)
            await self._start_refill({}, prefetch=not everything)

    def _must_hear_from_redis(self, now: float) -> bool:
        """Returns whether slots must be renewed, and the use at other gateways is too old to be reported."""
        return now - self._last_refill > SLOT_LEASE_SECONDS / 3

    def go_offline(self) -> None:
        """Counts in this process only from now on."""
        if self.offline:
            return
        self.offline, now = True, self._context.now()
        for lease in self._leases:
            lease.go_offline(now)

    async def go_online(self) -> bool:
        """Reports the amounts spent until now to Redis, and shares counts again. False while Redis is still down."""
        while self._refill:
            await asyncio.shield(self._refill)
        return await self._start_refill({}, prefetch=False)

    def _start_refill(self, least: Missing, *, prefetch: bool = True) -> asyncio.Future[bool]:
        self._refill = asyncio.ensure_future(self._run_refill(least, prefetch))
        return self._refill

    async def _run_refill(self, least: Missing, prefetch: bool) -> bool:
        try:
            return await self._exchange(least, prefetch)
        finally:
            self._refill = None

    async def _exchange(self, least: Missing, prefetch: bool) -> bool:
        """One refill of all leases by at least `least`, and, with `prefetch`, by the recent use. Returns whether Redis
        replied."""
        leases, now = self._leases, self._context.now()
        recent = self._recent_use(now) if prefetch else [0.0] * len(leases)
        arguments: list[Argument] = [SLOT_LEASE_SECONDS]
        for lease, ahead in zip(leases, recent, strict=True):
            keep = prefetch_target(lease, lease.waiting, ahead)
            arguments += lease.refill_arguments(least.get(lease, 0.0), keep=keep, now=now)
        windows = [lease.window for lease in leases]
        try:
            reply = await self._context.refill(self._key, arguments)
        except RedisUnavailable:
            for lease in leases:
                lease.on_timeout()
            self.go_offline()
            return False
        self._last_refill = now = self._context.now()
        for index, (lease, window) in enumerate(zip(leases, windows, strict=True)):
            lease.on_grant(reply[1 + 2 * index], reply[2 + 2 * index], window=window, now=now)
        self._context.mark_open(self)
        if lacking := int(reply[0]):
            lease = leases[lacking - 1]
            missing = least.get(lease, 0.0) - lease.available
            wait = min(REFUSAL_CACHE_SECONDS, max(0.001, lease.counter.retry_after(missing, now)))
            self._shortage = Shortage(lease, missing, now + wait)
        self.offline = False
        return True

    def _recent_use(self, now: float) -> list[float]:
        """The larger use of the last two intervals, by lease; zero once the key is idle."""
        if now - self._interval_start > IDLE_SECONDS:
            return [0.0] * len(self._leases)
        return [max(uses) for uses in zip(self._last_use, self._use, strict=True)]
