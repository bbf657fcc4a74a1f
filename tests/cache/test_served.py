"""The cache of a gateway with two worker processes over a Redis that goes away and comes back."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.gateway.served import Served, serving
from tests.records.redis_server import RedisServer

pytestmark = pytest.mark.anyio


async def uses(served: Served, count: int) -> Counter[tuple[int, str | None]]:
    """Status and cache header of identical requests, each over a connection of its own."""
    found: Counter[tuple[int, str | None]] = Counter()
    for _ in range(count):
        async with served.send_chat("good", stream=True) as response:
            await response.read()
            found[response.status, response.headers.get("x-coe-cache")] += 1
    return found


async def until_hit(served: Served) -> None:
    async with asyncio.timeout(60):
        while not (await uses(served, 1))[200, "hit"]:
            await asyncio.sleep(0.05)


async def test_workers_share_answers_and_no_request_fails_while_redis_is_away(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    declared = {"when": "always", "store": redis_server.url}
    async with serving(tmp_path, environ={"COE_WORKERS": "2"}, cache=declared) as served:
        await until_hit(served)
        called = len(served.upstream.seen)
        assert await uses(served, 40) == {(200, "hit"): 40}
        assert len(served.upstream.seen) == called
        redis_server.kill()
        away = await uses(served, 40)
        assert {status for status, _ in away} == {200}
        assert away[200, "hit"] == 0
        assert await served.metric("coe_cache_degraded") == 1
        redis_server.start()
        await until_hit(served)
        async with asyncio.timeout(60):
            while await served.metric("coe_cache_degraded"):
                await asyncio.sleep(0.05)
        assert {status for status, _ in await uses(served, 10)} == {200}
