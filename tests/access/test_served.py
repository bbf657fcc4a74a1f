"""Limits in real gateway processes over a real Redis."""

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.access.samples import key_of
from tests.gateway.served import Served, serving
from tests.records.redis_server import MISSING, RedisServer, installed

pytestmark = pytest.mark.anyio

LIMIT = 60


async def send_chat(served: Served, count: int, *, key: str) -> Counter[int]:
    """Return the statuses of `count` concurrent requests, each over its own connection."""

    async def one() -> int:
        async with served.send_chat("good", headers={"x-api-key": key}) as response:
            return response.status

    return Counter(await asyncio.gather(*(one() for _ in range(count))))


async def degraded(served: Served) -> bool:
    async with served.client.get(f"{served.url}/metrics", headers={"x-api-key": "bob"}) as response:
        return b"\ncoe_limits_degraded 1" in await response.read()


@pytest.mark.skipif(not installed(), reason=MISSING)
async def test_workers_count_together_and_go_on_without_redis(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    redis.start()
    alice = key_of("alice", limits={"requests_per_minute": LIMIT})
    bob = key_of("bob", limits={"requests_per_minute": 10_000}, scopes=("chat", "admin"))
    access = {"keys": [key.model_dump(mode="json") for key in (alice, bob)], "counters": redis.url}
    try:
        async with serving(tmp_path, environ={"COE_WORKERS": "2"}, access=access) as served:
            began = time.monotonic()
            statuses = await send_chat(served, 3 * LIMIT, key="alice")
            assert set(statuses) == {200, 429}
            most = 2 * (LIMIT + time.monotonic() - began)  # in a burst, each worker may admit a limit
            assert LIMIT <= statuses[200] <= most
            assert not await degraded(served)
            redis.kill()
            while not await degraded(served):
                assert set(await send_chat(served, 4, key="bob")) == {200}
            assert set(await send_chat(served, 50, key="bob")) == {200}
            records = await served.records(statuses[200] + 50)
            assert {record.key for record in records} == {"alice", "bob"}
            assert sum(record.key == "alice" for record in records) == statuses[200]  # no refused one is among them
    finally:
        redis.kill()
