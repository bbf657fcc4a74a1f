"""Limits of API keys: amounts, counters, and the accounts from which requests reserve.

A Counter is one declared limit of a key with its use. The Limiter has an Account for every key with limits. Each
process counts by itself, and exchanges changes with the others a few times a second through a SharedStore. So the
processes together may exceed a limit by what the others admit between two exchanges; see `EXCHANGE_SECONDS`. Times are
Unix seconds.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, Self

from coe.errors import InvalidRequest, LimitReached, RequestError, StoreError
from coe.outage import Outage
from coe.registry import ApiKey, KeyLimits
from coe.supervision import TaskFailed, ignore_failure, supervised
from coe.terminal import dollars
from gateway.shared_store import Change, SharedStore

_UNITS = {
    "concurrent_requests": 0,
    "requests_per_minute": 0,
    "tokens_per_minute": 1,
    "dollars_per_day": 2,
    "dollars_per_month": 2,
}
"""The index in Amounts of what a limit counts, in the order in which limits are checked."""


class Amounts(NamedTuple):
    """The use or allowance of one request; each meter counts one of the three."""

    requests: float
    tokens: float
    dollars: float


MINUTE, DAY = 60.0, 86400.0
GRACE_SECONDS = 3600.0
"""Seconds for which the store keeps the use of a window that is over, for processes whose clocks are behind."""
SLOT_RETRY_SECONDS = 1.0
"""Retry-After for a key whose concurrent requests are all in use: one of them may have ended by then."""
ROUNDING_ERROR = 1e-9
"""The part of a limit by which sums of floats may be wrong."""
EXCHANGE_SECONDS = 0.25
"""Time between two exchanges. With N processes, a limit may be exceeded by what N - 1 of them admit in this time and
the duration of an exchange: at most (N - 1) times the limit, in a burst."""
ACTIVE_SECONDS = 10.0
"""Seconds after its last request for which an account is exchanged. Later, a request waits for one exchange first."""
REFRESH_SECONDS = 0.25
"""Time limit of a request that waits for an exchange."""
EPOCH_SECONDS = 5.0
"""Concurrent requests are shared by epoch: each process adds its own to the current and to the next one. Those of a
process that crashed are free again after two epochs at most."""

SharedChange = tuple[str, Change]
"""The part of a counter's name after the key and the meter, and its change."""


class Counter:
    """One limit of a key, and its use in the window that contains the time of the last call: a minute, day or month in
    UTC. `unit` is the index in Amounts of what it counts.

    In the store it is the use of the window by all processes.
    """

    def __init__(self, name: str, limit: float) -> None:
        self.name = name
        self.limit = limit
        self.unit = _UNITS[name]
        self.begins = self.ends = 0.0
        self._shared = self._unsent = 0.0

    def limit_error(self, key: str, amount: float, *, wait: float) -> RequestError:
        """The error for a key that lacks `amount` for `wait` seconds, or always."""
        most = dollars(self.limit) if self.unit == 2 else f"{self.limit:g}"
        limit = f"{self.name} of the API key {key!r} ({most})"
        if amount > self.limit:
            use = dollars(amount) if self.unit == 2 else f"{amount:,.0f}"
            message = f"this request may use {use}, more than the {limit} ever allows; lower max_tokens"
            return InvalidRequest(message, param="max_tokens", code="request_exceeds_limit")
        seconds = f"{wait:,.0f}" if wait >= 100 else f"{max(wait, 0.001):.3g}"
        return LimitReached(f"the {limit} is used up; try again in {seconds} s", retry_after=wait)

    def remaining(self, now: float) -> float:
        """Begins the window that contains `now`, and returns the remaining amount; negative if more was used than
        allowed."""
        if not self.begins <= now < self.ends:
            self.begins, self.ends = _window_at(self.name, now)
            self._shared = self._unsent = 0.0
        return self.limit - max(0.0, self._shared + self._unsent)

    def consume(self, amount: float) -> None:
        """Subtracts an amount. Call `remaining` before."""
        self._unsent += amount

    def settle(self, reserved: float, used: float, at: float) -> None:
        """Charges the use beyond an amount that was reserved at the time `at`, or releases the rest if that was in this
        window. Call `remaining` before."""
        if used > reserved or at >= self.begins:
            self._unsent += used - reserved

    def retry_after(self, now: float) -> float:
        """Seconds until the limit is available again."""
        return self.ends - now

    def changes(self, now: float) -> tuple[SharedChange, ...]:
        """Changes to send to the store; the first counter is the one to read."""
        self.remaining(now)
        return ((f"/{self.begins:.0f}", Change(self._unsent, self.ends - now + GRACE_SECONDS)),)

    def apply(self, sent: Sequence[SharedChange], total: float, now: float) -> None:
        """The store has received the changes; the counter has this value there."""
        self.remaining(now)
        ((name, change),) = sent
        if name == f"/{self.begins:.0f}":
            self._shared, self._unsent = total, self._unsent - change.amount

    @property
    def is_busy(self) -> bool:
        """True if it must be exchanged although its key has no new request."""
        return self._unsent != 0


class ConcurrencySlots(Counter):
    """A limit on requests at the same time. In the store it is the sum of the processes, by epoch."""

    def __init__(self, name: str, limit: float) -> None:
        super().__init__(name, limit)
        self._used = self._others = 0.0
        self._others_until = 0.0
        self._sent: dict[int, float] = {}
        """The slots of this process that the store has, by epoch."""

    def remaining(self, now: float) -> float:
        return self.limit - self._used - (self._others if now < self._others_until else 0.0)

    def consume(self, amount: float) -> None:
        self._used += amount

    def settle(self, reserved: float, used: float, at: float) -> None:
        self._used -= reserved

    def retry_after(self, now: float) -> float:
        return SLOT_RETRY_SECONDS

    def changes(self, now: float) -> tuple[SharedChange, ...]:
        epoch = int(now // EPOCH_SECONDS)
        self._sent = {one: self._sent.get(one, 0.0) for one in (epoch, epoch + 1)}
        ttl = 4 * EPOCH_SECONDS
        return tuple((f"/{one}", Change(self._used - sent, ttl)) for one, sent in self._sent.items())

    def apply(self, sent: Sequence[SharedChange], total: float, now: float) -> None:
        for epoch, (_, change) in zip(self._sent, sent, strict=True):
            self._sent[epoch] += change.amount
        self._others = max(0.0, total - next(iter(self._sent.values())))
        self._others_until = now + 2 * EPOCH_SECONDS

    @property
    def is_busy(self) -> bool:
        return self._used != 0 or any(self._sent.values())


def _window_at(name: str, now: float) -> tuple[float, float]:
    """Begin and end of the minute, day or month that contains `now`."""
    if name == "dollars_per_month":
        date = datetime.fromtimestamp(now, UTC)
        month = date.year * 12 + date.month - 1
        begins, ends = (datetime(one // 12, one % 12 + 1, 1, tzinfo=UTC).timestamp() for one in (month, month + 1))
        return begins, ends
    length = DAY if name == "dollars_per_day" else MINUTE
    begins = now // length * length
    return begins, begins + length


@dataclass(slots=True, eq=False)
class Reservation:
    """The amounts that one request has reserved, and the time of its last reservation."""

    counters: Sequence[Counter]
    amounts: Amounts
    at: float = 0.0


class Account:
    """The remaining allowance of one API key, as far as this process knows."""

    def __init__(self, key: str, limiter: Limiter) -> None:
        self.key = key
        self.counters: tuple[Counter, ...] = ()
        self.used_at = self.exchanged_at = -math.inf
        self._limiter = limiter
        self._refresh: asyncio.Task[None] | None = None

    def declare(self, limits: KeyLimits) -> None:
        """Replaces the limits. Counts of limits that stay are kept."""
        known, self.counters = {counter.name: counter for counter in self.counters}, ()
        for name in _UNITS:
            if (limit := getattr(limits, name)) is not None:
                if (counter := known.get(name)) is None:
                    counter = (ConcurrencySlots if name == "concurrent_requests" else Counter)(name, limit)
                    self.exchanged_at = -math.inf
                counter.limit = float(limit)
                self.counters += (counter,)

    async def reserve(self, amounts: Amounts) -> Reservation:
        """Reserves all of `amounts` or nothing. Returns the argument for `settle`. Raises LimitReached, or
        InvalidRequest for more than a limit ever allows."""
        if self._limiter.shares and self._limiter.now() - self.exchanged_at > ACTIVE_SECONDS:
            await self._wait_for_exchange()
        reservation = Reservation(self.counters, Amounts(0, 0, 0))
        self.extend(reservation, amounts)
        return reservation

    def extend(self, reservation: Reservation, amounts: Amounts) -> None:
        """Reserves the difference between `amounts` and the reserved ones, or nothing. Raises as `reserve` does."""
        now = self._limiter.mark_active(self)
        missing = [after - before for after, before in zip(amounts, reservation.amounts, strict=True)]
        for counter in reservation.counters:
            amount, remaining = missing[counter.unit], counter.remaining(now)
            if amount > 0 and amount > remaining + ROUNDING_ERROR * counter.limit:
                raise counter.limit_error(self.key, amount, wait=counter.retry_after(now))
        for counter in reservation.counters:
            if amount := missing[counter.unit]:
                counter.consume(amount)
        reservation.amounts, reservation.at = amounts, now

    def settle(self, reservation: Reservation, used: Amounts) -> None:
        """Replaces a reservation by what was `used`: returns the rest, or charges more. Releases the concurrent
        request. Call it once per reservation."""
        now = self._limiter.mark_active(self)
        for counter in reservation.counters:
            counter.remaining(now)
            counter.settle(reservation.amounts[counter.unit], used[counter.unit], reservation.at)

    def state(self) -> list[tuple[Counter, float, float]]:
        """The remainder of each limit, negative if more was used than estimated, and the seconds until all of it is
        available again."""
        now = self._limiter.now()
        found = [(counter, counter.remaining(now)) for counter in self.counters]
        return [(each, left, each.retry_after(now) if left < each.limit else 0.0) for each, left in found]

    async def _wait_for_exchange(self) -> None:
        """A client that disconnects does not stop the exchange."""
        if self._refresh is None or self._refresh.done():
            self._refresh = asyncio.create_task(self._limiter.exchange([self]))
        await asyncio.wait((self._refresh,), timeout=REFRESH_SECONDS)


class Limiter:
    """Counts the use of keys. Without a store it counts for this process only, and forgets.

    It is an async context manager, which closes the store. While the store fails, it continues alone from the last
    known counts; what is used meanwhile is added later. A failure without a reply may count changes twice.
    """

    def __init__(
        self,
        store: SharedStore | None = None,
        *,
        clock: Callable[[], float] = time.time,
        task_failed: TaskFailed = ignore_failure,
    ) -> None:
        self.now = clock
        self.outage = Outage("limits", "; until it is back each gateway counts for itself")
        self._store = store
        self._task_failed = task_failed
        self._accounts: dict[str, Account] = {}
        self._active: set[Account] = set()
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._task = supervised(self._run, "limits", task_failed=self._task_failed)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Sends the remaining changes, as far as the store replies."""
        async with self._lock:  # a running exchange ends first
            self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.outage.retry_now()
        if self._active:
            await self.exchange(self._active)
        if self._store is not None:
            await self._store.aclose()

    @property
    def shares(self) -> bool:
        """True while counts are exchanged with other processes."""
        return self._store is not None and self.outage.cause is None

    def accounts(self, keys: Iterable[ApiKey]) -> Mapping[str, Account]:
        """The account of each key that has limits, by the key's name. Keys that were passed before keep their counts;
        counts of others are dropped."""
        known, self._accounts = self._accounts, {}
        for key in keys:
            if key.limits != KeyLimits():
                account = known.get(key.name) or Account(key.name, self)
                account.declare(key.limits)
                self._accounts[key.name] = account
        return self._accounts

    def mark_active(self, account: Account) -> float:
        """The account has a request, or one that ends. Returns the time."""
        account.used_at = now = self.now()
        self._active.add(account)
        return now

    async def exchange(self, accounts: Collection[Account]) -> None:
        """Sends the changes of these accounts, and reads what all processes have used. Does not fail."""
        async with self._lock:
            if self._store is None or self.outage.pausing:
                return
            now = self.now()
            sent = [
                (f"{account.key}/{counter.name}", counter, counter.changes(now))
                for account in accounts
                for counter in account.counters
            ]
            changes = {name + suffix: change for name, _, parts in sent for suffix, change in parts}
            try:
                totals = await self._store.add(changes)
            except StoreError as error:
                self.outage.began(str(error))
                return
            self.outage.ended()
            now = self.now()
            for name, counter, parts in sent:
                counter.apply(parts, totals[name + parts[0][0]], now)
            for account in accounts:
                account.exchanged_at = now

    async def _run(self) -> None:
        await self.exchange(())  # connects now
        while True:
            await asyncio.sleep(EXCHANGE_SECONDS)
            if self._active or self.outage.active:
                await self.exchange(tuple(self._active))
                since = self.now() - ACTIVE_SECONDS
                self._active = {
                    one for one in self._active if one.used_at > since or any(each.is_busy for each in one.counters)
                }
