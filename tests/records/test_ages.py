"""Deletion of old entries and their ids: by their own time in SQLite, by their arrival in Redis."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from redis.asyncio import Redis

from coe.records import open_log_and_feedback
from coe.records.record import RECORD
from coe.records.redis_log import EPOCH_MS, IDS, PER_MS, STREAM
from tests.records.samples import everything, record

pytestmark = pytest.mark.anyio
HOUR = 1 / 24
"""In days."""


async def test_redis_forgets_by_the_time_of_arrival_to_the_record(redis_url: str, tmp_path: Path) -> None:
    now = int(time.time() * 1_000)
    async with Redis.from_url(redis_url) as client:
        await client.flushall()
        for number, age in enumerate((7_200_000, 7_100_000, 60_000)):
            await client.xadd(STREAM, {"record": RECORD.encode(record(number))}, id=f"{now - age}-{number}")
            await client.zadd(IDS, {record(number).request_id: (now - age - EPOCH_MS) * PER_MS + number})
        log = open_log_and_feedback(redis_url, base=tmp_path, days=HOUR)[0]
        assert await log.find(record(0).request_id) == record(0)
        await log.append([record(3)])
        assert await everything(log) == [record(2), record(3)]
        assert await client.zrange(IDS, 0, -1) == [record(n).request_id.encode() for n in (2, 3)]
        assert await log.find(record(0).request_id) is None
        await log.aclose()
