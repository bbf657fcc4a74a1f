"""Cost of the routing log: time of put() on the request path, records per second and bytes per record of each store.

    python benchmarks/routing_log.py [--records 50000] [--redis redis://127.0.0.1:6379/15]

Prints JSON. The Redis database named is used for real: it must be empty, and is emptied afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coe.records import LogWriter, open_log_and_feedback
from coe.records.codec import ENTRY, RECORD
from coe.records.record import LogPage, LogQuery, RoutingLog, RoutingRecord
from coe.records.spool import Spool

BATCH = 500


def sample(count: int) -> list[RoutingRecord]:
    """Records as a gateway with 16 categories writes them, without prompts."""
    rng = np.random.default_rng(0)
    names = [f"category-{index}" for index in range(16)]
    return [_record(dict(zip(names, row.tolist(), strict=True))) for row in rng.dirichlet(np.ones(16) / 4, count)]


def _record(probabilities: dict[str, float]) -> RoutingRecord:
    category = max(probabilities, key=probabilities.__getitem__)
    return RoutingRecord(
        request_id=uuid.uuid4().hex,
        time=time.time(),
        category=category,
        confidence=probabilities[category],
        expert="qwen3-8b",
        reason="routed",
        propensity=0.95,
        candidates=("qwen3-8b", "llama-70b", "general"),
        probabilities=probabilities,
        stage="cascade",
        router="2026-01-31T12-00-00",
        config="3f9d2c51a0b7",
        digest="0123456789abcdef" * 4,
        outcome="ok",
        attempts=1,
        stream=True,
        routing_ms=0.1234,
        first_token_ms=81.25,
        total_ms=912.5,
        input_tokens=123,
        output_tokens=456,
        session=uuid.uuid4().hex,
        assignment="5b1c0de9a7f34821",
        utility=(0.7421, 0.7105, 0.6954),
    )


def put_cost(records: Sequence[RoutingRecord]) -> dict[str, float]:
    """Microseconds for one put: each on its own, in a queue with room and in a full one."""

    def measure(capacity: int) -> list[float]:
        nowhere: Any = (NowhereLog(), None)
        writer = LogWriter(*nowhere, spool=None, capacity=capacity)
        costs = []
        for record in records:
            start = time.perf_counter_ns()
            writer.put(record)
            costs.append((time.perf_counter_ns() - start) / 1_000)
        return costs

    room, full = measure(len(records)), measure(10)
    p99 = statistics.quantiles(room, n=100)[98]
    return {"median": statistics.median(room), "p99": p99, "full_queue_median": statistics.median(full)}


class NowhereLog:
    """Takes everything, keeps nothing."""

    async def append(self, records: Sequence[RoutingRecord]) -> None:
        return

    async def read(self, query: LogQuery) -> LogPage:
        return LogPage((), query.after)

    tail = back = read

    async def find(self, request_id: str) -> RoutingRecord | None:
        return None

    async def aclose(self) -> None:
        return


async def append_rate(log: RoutingLog, records: Sequence[RoutingRecord]) -> dict[str, float]:
    """Records a second in batches as the writer makes them, the processor time this takes here, and reading back."""
    start, busy = time.perf_counter(), time.process_time()
    for first in range(0, len(records), BATCH):
        await log.append(records[first : first + BATCH])
    spent, busy = time.perf_counter() - start, time.process_time() - busy
    start, read, cursor = time.perf_counter(), 0, ""
    while (page := await log.read(LogQuery(after=cursor, limit=1_000))).records:
        read, cursor = read + len(page.records), page.cursor
    if read != len(records):
        raise SystemExit(f"{len(records)} records written, {read} read: is the log empty at the start?")
    reading = time.perf_counter() - start
    return {"append_per_s": len(records) / spent, "cpu_us": 1e6 * busy / read, "read_per_s": read / reading}


async def writer_rate(log: RoutingLog, records: Sequence[RoutingRecord]) -> float:
    """Records a second from put() to the log, writer included, as long as the queue takes them."""
    start = time.perf_counter()
    feedback: Any = None
    async with LogWriter(log, feedback, spool=None, capacity=len(records), close_timeout=120) as writer:
        for record in records:
            writer.put(record)
    if writer.dropped:
        raise SystemExit(f"{writer.dropped} records dropped: {writer.last_error}")
    return len(records) / (time.perf_counter() - start)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


async def sqlite_cost(records: Sequence[RoutingRecord], folder: Path) -> dict[str, float]:
    log = open_log_and_feedback("sqlite:///log.db", base=folder, retention=len(records), days=30)[0]
    result = await append_rate(log, records)
    await log.aclose()
    result["bytes_per_record"] = size_of(folder) / len(records)
    log = open_log_and_feedback("sqlite:///second.db", base=folder)[0]
    result["writer_per_s"] = await writer_rate(log, records)
    await log.aclose()
    return result


def spool_cost(records: Sequence[RoutingRecord], folder: Path) -> dict[str, float]:
    spool = Spool(folder / "spool.jsonl")
    start = time.perf_counter()
    for first in range(0, len(records), BATCH):
        spool.append([ENTRY.encode(record) for record in records[first : first + BATCH]])
    added = time.perf_counter()
    while lines := spool.oldest(BATCH):
        for line in lines:
            ENTRY.decode(line)
        spool.delivered()
    emptied = time.perf_counter()
    return {"add_per_s": len(records) / (added - start), "take_per_s": len(records) / (emptied - added)}


async def redis_cost(records: Sequence[RoutingRecord], url: str) -> dict[str, float]:
    from redis.asyncio import Redis

    async with Redis.from_url(url) as client:
        if await client.dbsize():
            raise SystemExit("the Redis database is not empty; name another, such as redis://127.0.0.1:6379/15")
        before = (await client.info("memory"))["used_memory"]
        log = open_log_and_feedback(url, base=Path(), retention=len(records), days=30)[0]
        result = await append_rate(log, records)
        result["bytes_per_record"] = ((await client.info("memory"))["used_memory"] - before) / len(records)
        await client.flushdb()
        result["writer_per_s"] = await writer_rate(log, records)
        await client.flushdb()
        await log.aclose()
    return result


async def main(count: int, redis: str | None) -> dict[str, Any]:
    records = sample(count)
    start = time.perf_counter()
    lines = [RECORD.encode(record) for record in records]
    encoded = time.perf_counter()
    for line in lines:
        RECORD.decode(line)
    codec = {"encode_us": 1e6 * (encoded - start) / count, "decode_us": 1e6 * (time.perf_counter() - encoded) / count}
    report: dict[str, Any] = {"records": count, "put_us": put_cost(records)}
    report["codec"] = codec | {"bytes_per_record": sum(map(len, lines)) / count}
    with tempfile.TemporaryDirectory() as folder:
        report["sqlite"] = await sqlite_cost(records, Path(folder))
        report["spool"] = spool_cost(records, Path(folder))
    if redis:
        report["redis"] = await redis_cost(records, redis)
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--redis", metavar="URL")
    options = parser.parse_args()
    report = asyncio.run(main(options.records, options.redis))
    print(json.dumps(report, indent=2, default=float))
