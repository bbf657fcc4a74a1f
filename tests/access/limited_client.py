"""A gateway process whose client requests as much as its limits allow. The argument is the address of Redis."""

from __future__ import annotations

import asyncio
import json
import sys
import time

from coe.errors import LimitReached
from gateway.access import redis
from gateway.access.limits import Account, Amounts
from gateway.access.redis import RedisLimiter
from tests.access.samples import account_of

TASKS, SECONDS = 10, 0.8
USE = Amounts(1, 10, 0.001)


async def take(account: Account, deadline: float) -> int:
    """Send short requests until the deadline and at least one refusal. Returns the number that was allowed."""
    count, refused = 0, False
    while time.monotonic() < deadline or not refused:
        try:
            taken = await account.reserve(USE)
        except LimitReached:
            refused = True
            await asyncio.sleep(0.01)
            continue
        await asyncio.sleep(0.01)
        account.settle(taken, USE)
        count += 1
    return count


async def compete(limiter: RedisLimiter, limits: dict[str, float]) -> int:
    account = account_of(limiter, **limits)
    deadline = time.monotonic() + SECONDS
    return sum(await asyncio.gather(*(take(account, deadline) for _ in range(TASKS))))


async def main(url: str) -> None:
    """Read lines of limits, and print for each the number of requests that were allowed."""
    redis.REFILL_TIMEOUT_SECONDS = 10.0  # the point is who gets what, however busy the machine is
    async with RedisLimiter(url) as limiter:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while line := await asyncio.to_thread(sys.stdin.readline):
            sys.stdout.write(f"{await compete(limiter, json.loads(line))}\n")
            sys.stdout.flush()
        assert not limiter.degraded


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
