"""Refills of an account over Redis, and the amounts that it holds, on a clock that the test sets."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis import Redis

from coe.errors import LimitReached
from gateway.access import leases, redis
from gateway.access.leases import MAX_PREFETCH_SHARE
from gateway.access.limits import Account, Amounts, meters_of
from gateway.access.redis import RETURN_INTERVAL_SECONDS, RedisLimiter
from gateway.access.shared_account import RedisUnavailable, SharedAccount
from tests.access.samples import ONE, Clock, account_of, key_of, refilling, tokens
from tests.records.redis_server import RedisServer

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
        for at in range(1, len(arguments), 9):
            name = str(arguments[at + 1])
            returned, least, most = (float(value) for value in arguments[at + 6 : at + 9])
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


LIMIT, PREFETCH_SHARE = 6000.0, 0.1
Round = tuple[int, int, float, float, bool, bool, float]
ROUNDS = st.lists(
    st.tuples(
        st.integers(0, 1),  # the gateway
        st.integers(1, 40),  # requests
        st.sampled_from([1, 10, 60, 2000]),  # tokens that each reserves
        st.sampled_from([0.0, 0.5, 1.0, 1.5]),  # share that it uses
        st.booleans(),  # whether all running requests end in this round
        st.booleans(),  # whether the gateways then return their surplus
        st.sampled_from([0.0, 0.02, 0.3, 0.6, 3.0, 90.0]),  # seconds until the next round
    ),
    max_size=12,
)
LAST_ROUND = (0, 1, 1, 1.0, True, True, 2.0)
REFILLED_BESIDE_A_LEASE = [(0, 40, 10, 1.0, True, False, 90.0)]
REFILLED_BEFORE_A_REFUND = [(0, 1, 2000, 0.0, False, False, 90.0)]


def pass_time(client: Redis, clock: Clock, seconds: float) -> None:
    """Let a time pass for the gateways and for the buckets in Redis."""
    clock.ahead += seconds
    client.hincrbyfloat("coe:use:{alice}", "tokens_per_minute:at", -seconds)


async def take_all(account: Account, amount: float) -> float:
    """Reserve as much as the account allows. Returns the sum."""
    taken = 0.0
    with suppress(LimitReached):
        while True:
            await account.reserve(tokens(amount))
            taken += amount
    return taken


async def burst_after(rounds: list[Round], url: str) -> None:
    """Send the requests of the rounds, and then as many as the gateways allow."""
    clock = Clock()
    async with RedisLimiter(url, clock=clock) as first, RedisLimiter(url, clock=clock) as second:
        accounts = [account_of(limiter, tokens_per_minute=LIMIT) for limiter in (first, second)]
        running: list[tuple[Account, Any, float]] = []
        with Redis.from_url(url) as client:
            client.flushall()
            for gateway, requests, reserved, share, ends, returns, pause in [*rounds, LAST_ROUND]:
                with suppress(LimitReached):
                    for _ in range(requests):
                        reservation = await accounts[gateway].reserve(tokens(reserved))
                        running.append((accounts[gateway], reservation, reserved * share))
                if ends:
                    for account, reservation, used in running:
                        account.settle(reservation, tokens(used))
                    running.clear()
                for account in accounts:
                    if returns:
                        await account.return_surplus()
                    assert account.remaining()[0] <= LIMIT
                pass_time(client, clock, pause)
                assert max(account.remaining()[0] for account in accounts) <= LIMIT
        refunds = [account._leases[0].refund for account in accounts]
        assert max(refunds) <= PREFETCH_SHARE * LIMIT, "returned with the next refill"
        with refilling(LIMIT) as refilled:
            taken = [await take_all(account, 20) for account in accounts * 2]
            assert sum(taken) <= LIMIT + sum(refunds) + refilled() + 1
        assert not first.degraded
        assert not second.degraded


@settings(max_examples=30, deadline=None)
@example(REFILLED_BESIDE_A_LEASE)
@example(REFILLED_BEFORE_A_REFUND)
@given(ROUNDS)
def test_a_burst_on_all_gateways_takes_at_most_the_limit_and_none_reports_more(
    shared_redis: RedisServer, rounds: list[Round]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis, "RETURN_INTERVAL_SECONDS", 1e9)  # the rounds return
        patch.setattr(leases, "MAX_PREFETCH_SHARE", PREFETCH_SHARE)
        asyncio.run(burst_after(rounds, shared_redis.url))
