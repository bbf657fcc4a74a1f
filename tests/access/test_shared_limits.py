"""Gateways that share limits: what they may exceed together, and what a failure of the store or of one means."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from coe import outage
from gateway.access.limits import EPOCH_SECONDS, EXCHANGE_SECONDS, Amounts, Limiter
from gateway.shared_store import SqliteStore
from tests.access.conftest import redis_limiter
from tests.access.samples import ONE, Clock, account_of, dollars, remaining_of
from tests.access.test_limiters import admitted
from tests.records.redis_server import RedisServer
from tests.waiting import ManualClock, wait_until

pytestmark = pytest.mark.anyio

Gateways = Callable[[], Awaitable[Limiter]]


@pytest.fixture
async def sharing(tmp_path: Path) -> AsyncIterator[Callable[[int, Callable[[], float]], list[Limiter]]]:
    """Makes limiters over one store, which exchange when the test says so."""
    async with AsyncExitStack() as stack:

        def limiters(count: int, clock: Callable[[], float]) -> list[Limiter]:
            store = SqliteStore(tmp_path / "shared.sqlite", durable=False, clock=clock)
            stack.push_async_callback(store.aclose)
            return [Limiter(store, clock=clock) for _ in range(count)]

        yield limiters


Sharing = Callable[[int, Callable[[], float]], list[Limiter]]


# ------------------------------------------------------------------------------------------------ what is exceeded

WORKERS, SECONDS = 4, 59.0
DECLARED = [
    {"requests_per_minute": 600.0},
    {"tokens_per_minute": 6000.0},
    {"dollars_per_day": 0.6},
    {"requests_per_minute": 6e4, "tokens_per_minute": 6e5, "dollars_per_month": 0.6},
]


@pytest.mark.parametrize("declared", DECLARED)
async def test_workers_exceed_a_limit_by_at_most_what_they_admit_between_two_exchanges(
    declared: dict[str, float], sharing: Sharing
) -> None:
    """The documented bound: rate x exchange interval x (workers - 1); the rate is each worker's requests a second."""
    rate = 20.0
    clock = ManualClock(60.0)
    limiters = sharing(WORKERS, clock)
    accounts = [account_of(limiter, **declared) for limiter in limiters]
    use, allowed = Amounts(1, 10, 0.001), 0
    for _ in range(round(SECONDS / EXCHANGE_SECONDS)):
        for account in accounts:
            for _ in range(round(rate * EXCHANGE_SECONDS)):
                for reservation in await admitted(account, 1, use):
                    account.settle(reservation, use)
                    allowed += 1
        clock.now += EXCHANGE_SECONDS
        for limiter, account in zip(limiters, accounts, strict=True):
            await limiter.exchange([account])
    assert 599 <= allowed <= 600 + (WORKERS - 1) * math.ceil(rate * EXCHANGE_SECONDS)


async def test_slots_of_a_process_that_crashed_are_free_again_and_those_of_long_answers_stay_taken(
    sharing: Sharing,
) -> None:
    clock = ManualClock()
    crashed, other = sharing(2, clock)
    account = account_of(crashed, concurrent_requests=2)
    assert len(await admitted(account, 5)) == 2
    await crashed.exchange([account])
    waiting = account_of(other, concurrent_requests=2)
    assert not await admitted(waiting, 1)
    for _ in range(4):  # a long answer
        clock.now += EPOCH_SECONDS
        await crashed.exchange([account])
        await other.exchange([waiting])
        assert not await admitted(waiting, 1)
    clock.now += 2 * EPOCH_SECONDS
    await other.exchange([waiting])
    assert len(await admitted(waiting, 3)) == 2


# ------------------------------------------------------------------------------------------------------ over Redis


async def test_gateways_together_allow_little_more_than_one(gateways: Gateways) -> None:
    accounts = [account_of(await gateways(), dollars_per_day=1, requests_per_minute=1e6) for _ in range(4)]
    for account in accounts:
        await account.reserve(dollars(0))
    counts = [0] * len(accounts)
    async with asyncio.timeout(60):
        while True:
            for number, account in enumerate(accounts):
                counts[number] += len(await admitted(account, 1, dollars(0.01)))
            if all(remaining_of(account)[1] < 0.01 for account in accounts):
                break
            await asyncio.sleep(EXCHANGE_SECONDS / 4)
    assert 100 <= sum(counts) <= 200
    assert min(counts) > 0


async def test_a_gateway_that_ends_sends_what_was_used(redis_url: str) -> None:
    async with redis_limiter(redis_url) as ending:
        account = account_of(ending, dollars_per_day=100, concurrent_requests=1)
        account.settle(await account.reserve(dollars(60)), dollars(40))
        await account.reserve(dollars(20))
    async with redis_limiter(redis_url) as first:
        account = account_of(first, dollars_per_day=100)
        await account.reserve(ONE)
        assert remaining_of(account) == [pytest.approx(40)]


async def test_without_redis_each_gateway_counts_alone_and_logs_it_once(
    redis_server: RedisServer, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "RETRY_SECONDS", 0.05)
    async with redis_limiter(redis_server.url, clock=clock) as limiter:
        account = account_of(limiter, requests_per_minute=60, dollars_per_day=10)
        with caplog.at_level(logging.WARNING, "coe.outage"):
            assert len(await admitted(account, 20)) == 20
            await limiter.exchange([account])
            redis_server.kill()
            assert len(await admitted(account, 120)) == 40
            await wait_until(lambda: limiter.outage.active)
            await asyncio.sleep(0.3)
            assert len(caplog.records) == 1
        assert "each gateway counts for itself" in caplog.text
        assert await admitted(account, 1, Amounts(0, 0, 8))
        redis_server.start()
        await wait_until(lambda: not limiter.outage.active)
        async with redis_limiter(redis_server.url) as other:
            account = account_of(other, dollars_per_day=10)
            assert not await admitted(account, 1, dollars(3))  # what was spent meanwhile is known to all
