"""Latency of routing log queries: pages of the newest records by each filter, and old ones, in SQLite and Redis.

    python -m benchmarks.log_queries [--records 100000] [--redis redis://127.0.0.1:6379/15]

Prints JSON: milliseconds for one page of 50, the median of five, and `calls` where a page takes more than one. Also
the median time of a cursor at a point in time. The Redis database named is emptied afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.routing_log import sample
from coe.records import open_log_and_feedback
from coe.records.record import LogQuery, RoutingLog, RoutingRecord

BATCH = 2_000
TURNS = 5


class Traffic:
    """The same 10,000 posteriors again and again, a second apart, with what is common and what is rare."""

    def __init__(self, count: int) -> None:
        self.count, self._begin, self._shapes = count, time.time() - count, sample(min(count, 10_000))

    def batch(self, first: int) -> list[RoutingRecord]:
        return [self.record(n) for n in range(first, min(first + BATCH, self.count))]

    def record(self, n: int) -> RoutingRecord:
        return replace(
            self._shapes[n % len(self._shapes)],
            request_id=f"req_{hashlib.md5(b'%d' % n).hexdigest()}",
            time=self._begin + n,
            expert=f"expert-{n % 7}",
            reason="fallback" if n % 5_000 == 0 else "routed",
            outcome="expert_timeout" if n % 999 == 0 else "ok",
            session=f"session-{n // 20}",
            tenant=f"tenant-{n % 40}",
        )


def queries(traffic: Traffic) -> Mapping[str, LogQuery]:
    old = traffic.record(traffic.count // 10)
    return {
        "newest": LogQuery(limit=50),
        "category": LogQuery(category=old.category, limit=50),
        "expert": LogQuery(expert=old.expert, limit=50),
        "tenant": LogQuery(tenant=old.tenant or "", limit=50),
        "a rare reason": LogQuery(reason="fallback", limit=50),
        "a rare outcome": LogQuery(outcome="expert_timeout", limit=50),
        "an old session": LogQuery(session=old.session or "", limit=50),
        "an old id": LogQuery(request_id=old.request_id[:24], limit=50),
        "the last hour": LogQuery(since=time.time() - 3_600, limit=50),
        "until long ago": LogQuery(until=old.time, limit=50),
        "category and expert": LogQuery(category=old.category, expert=old.expert, limit=50),
        "rare and rare": LogQuery(reason="fallback", outcome="expert_timeout", limit=50),
        "what is met nowhere": LogQuery(expert=old.expert, tenant="nobody", limit=50),
    }


async def page(log: RoutingLog, query: LogQuery) -> tuple[float, int]:
    """Milliseconds until a page is full or the log at its beginning, and how many calls that took."""
    began, found, calls = time.perf_counter(), 0, 0
    while True:
        part = await log.back(replace(query, limit=query.limit - found))
        found, calls = found + len(part.records), calls + 1
        if not part.cursor or found == query.limit:
            return (time.perf_counter() - began) * 1_000, calls
        query = replace(query, before=part.cursor)


async def measure(log: RoutingLog, traffic: Traffic) -> dict[str, Any]:
    for first in range(0, traffic.count, BATCH):
        await log.append(traffic.batch(first))
    result: dict[str, Any] = {}
    for name, query in queries(traffic).items():
        taken = [await page(log, query) for _ in range(TURNS)]
        calls = {"calls": taken[0][1]} if taken[0][1] > 1 else {}
        result[name] = {"ms": round(statistics.median(ms for ms, _ in taken), 2)} | calls
    return result


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--redis")
    options = parser.parse_args()
    traffic = Traffic(options.records)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        log = open_log_and_feedback("sqlite:///log.db", base=Path(folder), retention=2 * options.records)[0]
        result["sqlite"] = await measure(log, traffic)
        await log.aclose()
    if options.redis:
        log = open_log_and_feedback(options.redis, base=Path(), retention=2 * options.records)[0]
        try:
            result["redis"] = await measure(log, traffic)
        finally:
            await log.aclose()
            await _empty(options.redis)
    print(json.dumps(result, indent=1))


async def _empty(url: str) -> None:
    from redis.asyncio import Redis

    async with Redis.from_url(url) as client:
        await client.flushdb()


if __name__ == "__main__":
    asyncio.run(main())
