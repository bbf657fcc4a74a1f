"""Features of the Redis log alone: bounded script calls and bounded scans."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from coe.errors import StoreError
from coe.records import open_log_and_feedback
from coe.records.record import LogQuery, RoutingLog
from coe.records.redis_log import IDS
from tests.records.samples import everything, ids, record, records

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def log(client: Redis, redis_url: str, tmp_path: Path) -> AsyncIterator[RoutingLog]:
    log = open_log_and_feedback(redis_url, base=tmp_path)[0]
    yield log
    await log.aclose()


async def test_a_scan_for_a_rare_record_gives_up_at_its_bound_and_goes_on_from_there(
    log: RoutingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coe.records.redis_log.SCAN_CHUNK", 10)
    monkeypatch.setattr("coe.records.redis_log.MAX_SCANNED", 50)
    await log.append([*records(120), record(120, category="law"), *records(60, start=121)])
    query, sizes = LogQuery(category="law"), []
    while (page := await log.read(query)).cursor != query.after:
        sizes.append(len(page.records))
        query = replace(query, after=page.cursor)
    assert sizes == [0, 0, 1, 0]
    assert (await log.back(LogQuery(category="law"))).records == ()


async def test_entries_that_are_no_records_are_counted_and_left_out(log: RoutingLog, client: Redis) -> None:
    await log.append(records(1))
    await client.xadd("coe:records", {"record": "{"})
    await client.xadd("coe:records", {"something": "else"})
    await client.xadd("coe:records", {"record": '{"schema": 1}'})
    await log.append(records(1, start=1))
    for page in (await log.read(LogQuery()), await log.back(LogQuery())):
        assert (set(ids(page.records)), page.damaged) == (set(ids(records(2))), 3)
    await client.zadd(IDS, {"broken": await client.zscore(IDS, record(1).request_id)})
    assert await log.find("broken") is None


async def test_a_full_redis_says_that_it_is_full(log: RoutingLog, client: Redis) -> None:
    await log.append([record(0)])
    await client.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreError, match="it is full: raise its maxmemory"):
            await log.append([record(1)])
        assert await log.find(record(0).request_id) == record(0)
    finally:
        await client.config_set("maxmemory", "0")
    await log.append([record(1)])
    assert await everything(log) == records(2)
