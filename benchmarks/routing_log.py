"""Cost of the routing log: put() on the request path, records per second, bytes per record, and pages by filter.

    python -m benchmarks.routing_log [--records 50000] [--redis redis://127.0.0.1:6379/15]

Prints JSON. `page_ms` is the median time of one page of 50 records, newest first. The Redis database named is used for
real: it must be empty, and is emptied afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from coe.records import LogWriter, open_log_and_feedback
from coe.records.record import RECORD, LogPage, LogQuery, RoutingLog, RoutingRecord

BATCH = 500
TURNS = 5
"""Times that each page is read."""


def sample(count: int) -> list[RoutingRecord]:
    """Records as a gateway with 16 categories writes them, without prompts, a second apart."""
    rng, begin = np.random.default_rng(0), time.time() - count
    names = [f"category-{index}" for index in range(16)]
    rows = rng.dirichlet(np.ones(16) / 4, count)
    return [_record(n, begin, dict(zip(names, row.tolist(), strict=True))) for n, row in enumerate(rows)]


def _record(number: int, begin: float, probabilities: dict[str, float]) -> RoutingRecord:
    category = max(probabilities, key=probabilities.__getitem__)
    return RoutingRecord(
        request_id=f"{number:032x}",
        time=begin + number,
        category=category,
        confidence=probabilities[category],
        expert=f"expert-{number % 7}",
        reason="fallback" if number % 5_000 == 0 else "routed",
        propensity=0.95,
        candidates=("qwen3-8b", "llama-70b", "general"),
        probabilities=probabilities,
        stage="cascade",
        router="2026-01-31T12-00-00",
        config="3f9d2c51a0b7",
        digest="0123456789abcdef" * 4,
        outcome="expert_timeout" if number % 999 == 0 else "ok",
        attempts=1,
        stream=True,
        routing_ms=0.1234,
        first_token_ms=81.25,
        total_ms=912.5,
        input_tokens=123,
        output_tokens=456,
        session=f"session-{number // 20}",
        tenant=f"tenant-{number % 40}",
        assignment="5b1c0de9a7f34821",
        utility=(0.7421, 0.7105, 0.6954),
    )


def queries(old: RoutingRecord) -> Mapping[str, LogQuery]:
    """Queries for common, rare and absent records; `old` is a record of long ago."""
    return {
        "newest": LogQuery(limit=50),
        "category and expert": LogQuery(category=old.category, expert=old.expert, limit=50),
        "rare and rare": LogQuery(reason="fallback", outcome="expert_timeout", limit=50),
        "an old session": LogQuery(session=old.session or "", limit=50),
        "until long ago": LogQuery(until=old.time, limit=50),
        "what is met nowhere": LogQuery(expert=old.expert, tenant="nobody", limit=50),
    }


def put_cost(records: Sequence[RoutingRecord]) -> dict[str, float]:
    """Microseconds for one put: each on its own, in a queue with room and in a full one."""

    def measure(capacity: int) -> list[float]:
        nowhere: Any = (None, None)  # nothing is written before the writer is entered
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


def codec_cost(records: Sequence[RoutingRecord]) -> dict[str, float]:
    start = time.perf_counter()
    lines = [RECORD.encode(record) for record in records]
    encoded = time.perf_counter()
    for line in lines:
        RECORD.decode(line)
    decoded, count = time.perf_counter(), len(records)
    size = sum(map(len, lines)) / count
    return {
        "encode_us": 1e6 * (encoded - start) / count,
        "decode_us": 1e6 * (decoded - encoded) / count,
        "bytes_per_record": size,
    }


async def store_cost(log: RoutingLog, records: Sequence[RoutingRecord]) -> dict[str, Any]:
    """Records a second in batches as the writer makes them, the processor time here, reading back, and pages."""
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
    pages = {
        name: round(statistics.median([await page_ms(log, query) for _ in range(TURNS)]), 2)
        for name, query in queries(records[len(records) // 10]).items()
    }
    rates = {"append_per_s": len(records) / spent, "cpu_us": 1e6 * busy / read, "read_per_s": read / reading}
    return rates | {"page_ms": pages}


async def page_ms(log: RoutingLog, query: LogQuery) -> float:
    """Milliseconds until a page is full or the log at its beginning."""
    began, count = time.perf_counter(), 0
    while True:
        part: LogPage = await log.back(replace(query, limit=query.limit - count))
        count += len(part.records)
        if not part.cursor or count == query.limit:
            return (time.perf_counter() - began) * 1_000
        query = replace(query, before=part.cursor)


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


async def sqlite_cost(records: Sequence[RoutingRecord]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        log = open_log_and_feedback("sqlite:///log.db", base=Path(folder), retention=len(records), days=30)[0]
        result = await store_cost(log, records)
        await log.aclose()
        result["bytes_per_record"] = size_of(Path(folder)) / len(records)
        log = open_log_and_feedback("sqlite:///second.db", base=Path(folder))[0]
        result["writer_per_s"] = await writer_rate(log, records)
        await log.aclose()
    return result


async def redis_cost(records: Sequence[RoutingRecord], url: str) -> dict[str, Any]:
    from redis.asyncio import Redis

    async with Redis.from_url(url) as client:
        if await client.dbsize():
            raise SystemExit("the Redis database is not empty; name another, such as redis://127.0.0.1:6379/15")
        before = (await client.info("memory"))["used_memory"]
        log = open_log_and_feedback(url, base=Path(), retention=len(records), days=30)[0]
        result = await store_cost(log, records)
        result["bytes_per_record"] = ((await client.info("memory"))["used_memory"] - before) / len(records)
        await client.flushdb()
        result["writer_per_s"] = await writer_rate(log, records)
        await client.flushdb()
        await log.aclose()
    return result


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--redis", metavar="URL")
    options = parser.parse_args()
    records = sample(options.records)
    report: dict[str, Any] = {"records": len(records), "put_us": put_cost(records), "codec": codec_cost(records)}
    report["sqlite"] = await sqlite_cost(records)
    if options.redis:
        report["redis"] = await redis_cost(records, options.redis)
    print(json.dumps(report, indent=2, default=float))


if __name__ == "__main__":
    asyncio.run(main())
