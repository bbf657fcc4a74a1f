"""Conformance of every limiter, in one process and over Redis."""

import asyncio
from typing import Any

import pytest

from coe.errors import InvalidRequest, LimitReached
from gateway.access.limits import Account, Amounts, Limiter
from tests.access.samples import ONE, Clock, account_of, dollars, remaining_of, tokens

pytestmark = pytest.mark.anyio


async def admitted(account: Account, count: int, use: Amounts = ONE) -> list[Any]:
    """Reserve for `count` concurrent requests, and return what was granted."""
    answers = await asyncio.gather(*(account.reserve(use) for _ in range(count)), return_exceptions=True)
    assert all(isinstance(answer, LimitReached) for answer in answers if isinstance(answer, BaseException)), answers
    return [answer for answer in answers if not isinstance(answer, BaseException)]


async def test_as_many_requests_a_minute_as_declared_and_no_more(limiter: Limiter, clock: Clock) -> None:
    account = account_of(limiter, requests_per_minute=20)
    assert len(await admitted(account, 50)) == 20
    clock.ahead = 60
    assert len(await admitted(account, 50)) == 20


async def test_a_refusal_names_limit_and_key_and_when_to_try_again(limiter: Limiter, clock: Clock) -> None:
    account = account_of(limiter, requests_per_minute=6)
    clock.ahead = 20
    await admitted(account, 6)
    refused = await refusal_of(account, ONE)
    assert refused.retry_after == 40
    assert "requests_per_minute of the API key 'alice' (6) is used up" in str(refused)


async def refusal_of(account: Account, use: Amounts) -> LimitReached:
    """Use up the limit, and return the first refusal."""
    while True:
        try:
            await account.reserve(use)
        except LimitReached as refused:
            return refused


async def test_tokens_that_were_not_used_come_back(limiter: Limiter) -> None:
    account = account_of(limiter, tokens_per_minute=1000)
    first = await account.reserve(tokens(900))
    assert not await admitted(account, 1, tokens(500))
    account.settle(first, tokens(100))
    assert await admitted(account, 1, tokens(500))


async def test_use_beyond_the_estimate_is_charged_in_the_minute_in_which_it_is_known(
    limiter: Limiter, clock: Clock
) -> None:
    account = account_of(limiter, tokens_per_minute=1000)
    for ahead in (0, 120):
        reservation = await account.reserve(tokens(100))
        clock.ahead = ahead
        account.settle(reservation, tokens(1100))
        assert remaining_of(account) == [-100 if ahead == 0 else 0]
        with pytest.raises(LimitReached):
            await account.reserve(tokens(100))
        clock.ahead += 60


async def test_what_no_waiting_can_help_is_the_requests_own_fault(limiter: Limiter) -> None:
    account = account_of(limiter, tokens_per_minute=1000)
    with pytest.raises(InvalidRequest, match="lower max_tokens") as refused:
        await account.reserve(tokens(1001))
    assert refused.value.param == "max_tokens"


async def test_a_request_refused_by_one_limit_takes_nothing_of_the_others(limiter: Limiter) -> None:
    account = account_of(limiter, requests_per_minute=10, tokens_per_minute=100)
    await admitted(account, 30, tokens(50))
    assert len(await admitted(account, 10, tokens(0))) == 8


async def test_a_refused_extension_takes_nothing_and_the_reservation_stays(limiter: Limiter) -> None:
    account = account_of(limiter, tokens_per_minute=1000, dollars_per_day=1)
    running = await account.reserve(Amounts(1, 0, 0.9))
    reservation = await account.reserve(Amounts(1, 100, 0.01))
    with pytest.raises(LimitReached, match="dollars_per_day"):
        account.extend(reservation, Amounts(1, 900, 0.5))
    assert await admitted(account, 1, tokens(800))
    account.settle(running, ONE)
    account.settle(reservation, ONE)
    assert await admitted(account, 1, dollars(0.99))


async def test_places_among_the_concurrent_requests_come_back(limiter: Limiter) -> None:
    account = account_of(limiter, concurrent_requests=3)
    running = await admitted(account, 10)
    assert len(running) == 3
    account.settle(running[0], ONE)
    assert len(await admitted(account, 10)) == 1


async def test_a_new_day_has_its_own_money_and_the_month_goes_on(limiter: Limiter, clock: Clock) -> None:
    account = account_of(limiter, dollars_per_day=1.0, dollars_per_month=1.5)
    clock.ahead += 1_800_000_000 - clock()  # 2027-01-15 08:00 UTC
    account.settle(await account.reserve(dollars(1)), dollars(1))
    refused = await refusal_of(account, dollars(0.5))
    assert refused.retry_after == pytest.approx(16 * 3600, abs=10)
    clock.ahead += 86400
    account.settle(await account.reserve(dollars(0.5)), dollars(0.5))
    refused = await refusal_of(account, dollars(0.5))
    assert "dollars_per_month of the API key 'alice' ($1.5)" in str(refused)
    assert refused.retry_after == pytest.approx((15 * 24 + 16) * 3600, abs=10)


async def test_what_was_taken_yesterday_is_settled_with_yesterday(limiter: Limiter, clock: Clock) -> None:
    account = account_of(limiter, dollars_per_day=1.0)
    yesterday = await account.reserve(dollars(1))
    clock.ahead += 86400
    today = await account.reserve(dollars(0.6))
    account.settle(yesterday, dollars(0))
    account.settle(today, dollars(0.6))
    assert not await admitted(account, 1, dollars(0.5))


async def test_another_declaration_keeps_what_was_counted(limiter: Limiter) -> None:
    before = account_of(limiter, requests_per_minute=5, concurrent_requests=2)
    running = await admitted(before, 2)
    after = account_of(limiter, requests_per_minute=4, concurrent_requests=3)
    assert len(await admitted(after, 5)) == 1
    before.settle(running[0], ONE)
    assert len(await admitted(after, 5)) == 1
    assert not await admitted(after, 5)


async def test_the_remaining_amount_and_the_end_of_the_window_are_reported_for_each_limit(
    limiter: Limiter, clock: Clock
) -> None:
    account = account_of(limiter, requests_per_minute=10, tokens_per_minute=1000)
    taken = await account.reserve(tokens(600))
    clock.ahead = 15
    assert [state[1:] for state in account.state()] == [(9, 45), (400, 45)]
    account.settle(taken, tokens(0))
    assert [state[1:] for state in account.state()] == [(9, 45), (1000, 0)]
