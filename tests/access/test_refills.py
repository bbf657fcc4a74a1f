"""Refills of an account over Redis, and the amounts that it holds, on a clock that the test sets."""

import asyncio

import pytest

from gateway.access.leases import MAX_PREFETCH_SHARE
from gateway.access.limits import Amounts, meters_of
from gateway.access.redis import RETURN_INTERVAL_SECONDS
from gateway.access.shared_account import RedisUnavailable, SharedAccount
from tests.access.samples import ONE, key_of, tokens

pytestmark = pytest.mark.anyio


class Counts:
    """A SharedContext whose counts are in this process. Each key has a lease of each meter; nothing refills by time."""

    def __init__(self, **limits: float) -> None:
        self.degraded = self.down = False
        self.time, self.refills = 1_800_000_000.0, 0
        self.left: dict[str, float] = dict(limits)
        self.account = SharedAccount("alice", self)
        self.declare(**limits)

    def declare(self, **limits: float) -> None:
        self.account.declare(meters_of(key_of(limits=limits).limits))

    def now(self) -> float:
        return self.time

    def mark_open(self, account: SharedAccount) -> None: ...

    async def refill(self, key: str, arguments: list[str | float]) -> list[float]:
        if self.down:
            raise RedisUnavailable
        self.refills += 1
        await asyncio.sleep(0)
        reply = [0.0]
        for at in range(1, len(arguments), 7):
            name = str(arguments[at + 1])
            returned, least, most = (float(value) for value in arguments[at + 4 : at + 7])
            assert name != "concurrent_requests"
            self.left[name] += returned
            granted = max(least, min(most, self.left[name]))
            self.left[name] -= granted
            reply += [granted, self.left[name]]
        return reply


async def served(counts: Counts, *, seconds: float, pause: float, reserved: float, used: float) -> list[float]:
    """Send a request after each pause, and return surplus as often as a limiter does. Returns the largest amount of
    each limit that is leased and not spent after that."""
    account, returned, held = counts.account, counts.time, [0.0] * len(counts.account.meters)
    for _ in range(round(seconds / pause)):
        counts.time += pause
        reservation = await account.reserve(tokens(1))
        await account.extend(reservation, tokens(reserved))
        account.settle(reservation, tokens(used))
        if counts.time - returned >= RETURN_INTERVAL_SECONDS:
            returned = counts.time
            await account.return_surplus()
            held = [max(most, lease.available) for most, lease in zip(held, account._leases, strict=True)]
    return held


async def test_a_busy_key_needs_a_few_refills_a_second() -> None:
    counts = Counts(requests_per_minute=1e9, tokens_per_minute=1e12)
    await served(counts, seconds=5, pause=0.001, reserved=4000, used=10)
    warm = counts.refills
    await served(counts, seconds=10, pause=0.001, reserved=4000, used=10)
    assert counts.refills - warm <= 30


async def test_a_busy_gateway_holds_at_most_a_small_share_of_a_limit() -> None:
    counts = Counts(requests_per_minute=1000, tokens_per_minute=1_000_000)
    held = await served(counts, seconds=0.5, pause=0.002, reserved=4000, used=100)
    assert 0 < held[0] <= 1000 * MAX_PREFETCH_SHARE
    assert 0 < held[1] <= 1_000_000 * MAX_PREFETCH_SHARE


async def test_a_gateway_that_becomes_less_busy_returns_what_it_no_longer_needs() -> None:
    counts = Counts(requests_per_minute=1e6, tokens_per_minute=1e9)
    await served(counts, seconds=2, pause=0.001, reserved=1000, used=1000)
    await served(counts, seconds=2, pause=0.1, reserved=1000, used=1000)
    held = await served(counts, seconds=2, pause=0.1, reserved=1000, used=1000)
    assert held[0] <= 20, "about twice the requests of half a second"
    assert held[1] <= 20_000
    counts.time += 10
    await counts.account.return_surplus()
    assert not counts.account.is_open


async def test_a_reservation_before_and_after_redis_failed_is_settled_as_a_whole() -> None:
    counts = Counts(dollars_per_day=1.0)
    reservation = await counts.account.reserve(Amounts(1, 0, 0.1))
    counts.account.go_offline()
    await counts.account.extend(reservation, Amounts(1, 0, 0.5))
    assert await counts.account.go_online()
    counts.account.settle(reservation, Amounts(1, 0, 0.3))
    await counts.account.return_surplus(everything=True)
    assert counts.left["dollars_per_day"] == pytest.approx(0.7)


async def test_a_reservation_of_nothing_is_charged_to_the_day_on_which_it_ends() -> None:
    counts = Counts(dollars_per_day=1.0)
    reservation = await counts.account.reserve(ONE)
    counts.time += 86400
    counts.account.settle(reservation, Amounts(1, 0, 0.3))
    await counts.account.return_surplus(everything=True)
    assert counts.left["dollars_per_day"] == pytest.approx(0.7)


async def test_a_reload_while_surplus_waits_for_a_refill_is_followed() -> None:
    counts = Counts(requests_per_minute=1e6, tokens_per_minute=1e9)
    await served(counts, seconds=1, pause=0.01, reserved=1000, used=1)
    running = asyncio.ensure_future(counts.account.reserve(tokens(5e8)))
    returning = asyncio.ensure_future(counts.account.return_surplus(everything=True))
    await asyncio.sleep(0)
    counts.declare(tokens_per_minute=1e9)
    await asyncio.gather(running, returning)
    assert [meter.name for meter in counts.account.meters] == ["tokens_per_minute"]
