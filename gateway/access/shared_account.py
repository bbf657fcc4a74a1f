"""One API key's account that several gateways spend from, through a lease of each meter.

A request is paid from the leases without Redis where they cover it. Otherwise it waits for a refill: one script call
that reports what was spent, returns the surplus, and grants more. All waiting requests share one refill. While Redis is
down the account counts by itself.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple, Protocol

from gateway.access.leases import Argument, Lease, new_lease, prefetch_target
from gateway.access.limits import Amounts, Meter, is_available, limit_error

SLOT_LEASE_SECONDS = 10.0
"""Seconds after which the slots of a gateway that sends nothing are free again."""
PACE_INTERVAL_SECONDS = 0.1
"""The use of the last interval is prefetched for the next."""
IDLE_SECONDS = 1.0
"""Seconds without a request after which nothing is prefetched."""
REFUSAL_CACHE_SECONDS = 0.1
"""Seconds for which a shortage in Redis refuses requests without another refill."""
ZERO = Amounts(0, 0, 0)


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


class ReservedPart(NamedTuple):
    """Reserved amounts, the leases and windows that they came from, and whether Redis was down."""

    leases: tuple[Lease, ...]
    amounts: Amounts
    windows: tuple[int, ...]
    offline: bool


class SharedReservation:
    """The parts of one reservation, in order, and the sum of their amounts."""

    __slots__ = ("amounts", "parts")

    def __init__(self) -> None:
        self.amounts = ZERO
        self.parts: list[ReservedPart] = []


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
        self._waiting = ZERO  # amounts that requests wait for
        self._interval_use = self._last_interval_use = ZERO
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

    def remaining(self) -> list[float]:
        now = self._context.now()
        return [lease.remaining(now) for lease in self._leases]

    # --------------------------------------------------------------------------------------------- reservations

    async def reserve(self, amounts: Amounts) -> SharedReservation:
        reservation = SharedReservation()
        await self.extend(reservation, amounts)
        return reservation

    async def extend(self, reservation: SharedReservation, amounts: Amounts) -> None:
        reservation.parts.append(await self._reserve(amounts.minus(reservation.amounts)))
        reservation.amounts = amounts

    async def _reserve(self, amounts: Amounts) -> ReservedPart:
        while True:
            leases, now = self._leases, self._context.now()
            if self.offline:
                return self._reserve_offline(amounts, now)
            for lease in leases:
                if not lease.covers(amounts[lease.unit], now):
                    break
            else:
                self._record_use(amounts, now)
                self._context.mark_open(self)
                windows = tuple([lease.spend(amounts[lease.unit]) for lease in leases])
                return ReservedPart(leases, amounts, windows, offline=False)
            await self._wait_for_refill(amounts, now)

    def settle(self, reservation: SharedReservation, used: Amounts) -> None:
        """The earlier parts count as used; the last one is corrected."""
        *earlier, last = reservation.parts
        for part in earlier:
            self._settle(part, part.amounts)
        self._settle(last, used.minus(reservation.amounts.minus(last.amounts)))
        self._context.mark_open(self)

    def _settle(self, part: ReservedPart, used: Amounts) -> None:
        now, reserved, online = self._context.now(), part.amounts, not self.offline
        for lease, window in zip(part.leases, part.windows, strict=True):
            unit = lease.unit
            lease.settle(reserved[unit], used[unit], window, was_offline=part.offline, online=online, now=now)

    def _reserve_offline(self, amounts: Amounts, now: float) -> ReservedPart:
        leases = self._leases
        for lease in leases:
            amount, counter = amounts[lease.unit], lease.counter
            if not is_available(counter.remaining(now), amount, counter.limit):
                raise limit_error(self._key, lease.meter, amount, wait=counter.retry_after(amount, now))
        windows = tuple([lease.spend_offline(amounts[lease.unit]) for lease in leases])
        return ReservedPart(leases, amounts, windows, offline=True)

    async def _wait_for_refill(self, amounts: Amounts, now: float) -> None:
        """Waits for the running refill, or starts one. Raises LimitReached during a known shortage."""
        if self._shortage is not None:
            lease, shortage, until = self._shortage
            missing = amounts[lease.unit] - lease.available
            if now < until and missing >= shortage:
                wait = lease.counter.retry_after(missing, now)
                raise limit_error(self._key, lease.meter, amounts[lease.unit], wait=wait)
        self._waiting = Amounts(*(waiting + more for waiting, more in zip(self._waiting, amounts, strict=True)))
        try:
            # A client that disconnects does not stop the refill: what it grants is available to the next request.
            await asyncio.shield(self._refill or self._start_refill(amounts))
        finally:
            self._waiting = Amounts(*(waiting - more for waiting, more in zip(self._waiting, amounts, strict=True)))

    # --------------------------------------------------------------------------------------------- refills

    @property
    def is_open(self) -> bool:
        """True if there is something to return or report to Redis."""
        return any(lease.is_open for lease in self._leases)

    async def return_surplus(self, *, everything: bool = False) -> None:
        """Reports what was spent and returns what is not needed, `everything` at the end of the process. Renews the
        slots in use where needed."""
        now = self._context.now()
        recent = ZERO if everything else self._recent_use(now)
        surplus = any(lease.surplus(prefetch_target(lease, ZERO, recent)) > 0 for lease in self._leases)
        if everything or surplus or now - self._last_refill > SLOT_LEASE_SECONDS / 3:
            while self._refill:
                await asyncio.shield(self._refill)
            await self._start_refill(ZERO, recent=recent)

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
        return await self._start_refill(ZERO, recent=ZERO)

    def _start_refill(self, least: Amounts, *, recent: Amounts | None = None) -> asyncio.Future[bool]:
        self._refill = asyncio.ensure_future(self._run_refill(least, recent))
        return self._refill

    async def _run_refill(self, least: Amounts, recent: Amounts | None) -> bool:
        try:
            return await self._exchange(least, recent)
        finally:
            self._refill = None

    async def _exchange(self, least: Amounts, recent: Amounts | None) -> bool:
        """One refill of all leases by at least `least`. Returns whether Redis replied."""
        leases, now = self._leases, self._context.now()
        recent = self._recent_use(now) if recent is None else recent
        arguments: list[Argument] = [SLOT_LEASE_SECONDS]
        for lease in leases:
            keep = prefetch_target(lease, self._waiting, recent)
            arguments += lease.refill_arguments(least[lease.unit], keep=keep, now=now)
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
        if lacking := int(reply[0]):
            lease = leases[lacking - 1]
            missing = least[lease.unit] - lease.available
            wait = min(REFUSAL_CACHE_SECONDS, max(0.001, lease.counter.retry_after(missing, now)))
            self._shortage = Shortage(lease, missing, now + wait)
        self.offline = False
        return True

    # --------------------------------------------------------------------------------------------- recent use

    def _record_use(self, amounts: Amounts, now: float) -> None:
        use = self._interval_use
        if now - self._interval_start > PACE_INTERVAL_SECONDS:
            self._last_interval_use, use, self._interval_start = use, ZERO, now
        self._interval_use = Amounts(use[0] + amounts[0], use[1] + amounts[1], use[2] + amounts[2])

    def _recent_use(self, now: float) -> Amounts:
        """The larger use of the last two intervals; zero once the key is idle."""
        if now - self._interval_start > IDLE_SECONDS:
            return ZERO
        return Amounts(*map(max, self._last_interval_use, self._interval_use))
