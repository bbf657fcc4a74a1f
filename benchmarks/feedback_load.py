"""Feedback under load: rejected and lost ratings, and their latency, beside chat traffic.

python -m benchmarks.feedback_load [--ratings 2000] [--in-flight 24] [--redis redis://127.0.0.1:6379/0] [--lock]

Starts a gateway in front of a server that answers immediately. Chat requests run all the time; every answer is rated
once, with this many ratings in flight. `--lock` holds the log's SQLite file for two seconds of every four.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import tempfile
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from coe.errors import StoreError
from coe.records import open_log_and_feedback
from tests.gateway.served import SQLITE, Served, serving

WAIT_SECONDS = 120.0
"""For the last event to reach the log."""


async def main(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        url = options.redis or SQLITE
        async with serving(Path(folder), log={"url": url}) as served:
            return await measured(served, options)


async def measured(served: Served, options: argparse.Namespace) -> dict[str, Any]:
    requests: asyncio.Queue[str] = asyncio.Queue(maxsize=options.in_flight)
    statuses, rated, took = Counter[int](), list[str](), list[float]()
    over = asyncio.Event()
    sent = 0

    async def rate_answers() -> None:
        nonlocal sent
        while sent < options.ratings:
            sent += 1
            async with served.send_chat("good") as response:
                await response.read()
                await requests.put(response.headers["x-request-id"])

    async def rate() -> None:
        while True:
            request_id = await requests.get()
            began = time.perf_counter()
            body = {"request_id": request_id, "score": 1}
            async with served.client.post(f"{served.url}/v1/feedback", json=body) as response:
                await response.read()
                statuses[response.status] += 1
                if response.status < 300:
                    rated.append(request_id)
            took.append(1000 * (time.perf_counter() - began))
            requests.task_done()

    began = time.perf_counter()
    locking = asyncio.create_task(lock(served.folder, over)) if options.lock else None
    raters = [asyncio.create_task(rate()) for _ in range(options.in_flight)]
    await asyncio.gather(*(rate_answers() for _ in range(options.in_flight)))
    await requests.join()
    seconds = time.perf_counter() - began
    over.set()
    for one in (*raters, *([locking] if locking else [])):
        if one is not locking:
            one.cancel()
    if locking:
        await locking
    kept = await stored(served, rated)
    took.sort()
    return {
        "log": "redis" if options.redis else "sqlite",
        "ratings": len(took),
        "statuses": dict(statuses),
        "accepted and lost": len(set(rated) - set(kept)),
        "stored twice": len(kept) - len(set(kept)),
        "ratings a second": round(len(took) / seconds),
        "p50 ms": round(statistics.median(took), 1),
        "p99 ms": round(took[int(len(took) * 0.99)], 1),
        "largest ms": round(took[-1], 1),
    }


async def lock(folder: Path, over: asyncio.Event) -> None:
    """Hold the log's file as another writer would, two seconds of every four."""
    with closing(sqlite3.connect(folder / ".coe" / "routing-log.sqlite", isolation_level=None, timeout=30)) as log:
        while not over.is_set():
            log.execute("BEGIN IMMEDIATE")
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), 2)
            log.execute("COMMIT")
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), 2)


async def stored(served: Served, rated: list[str]) -> list[str]:
    """Requests of the events in the log, once all are there or WAIT_SECONDS are over."""
    log = open_log_and_feedback(served.declared["log"]["url"], base=served.folder / ".coe")[1]
    deadline, found = time.monotonic() + WAIT_SECONDS, list[str]()
    try:
        while time.monotonic() < deadline:
            with suppress(StoreError):
                found = [event.request_id for event in (await log.read(limit=10_000)).events]
            if set(found) >= set(rated):
                break
            await asyncio.sleep(0.2)
    finally:
        await log.aclose()
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratings", type=int, default=2_000)
    parser.add_argument("--in-flight", type=int, default=24)
    parser.add_argument("--redis", default="")
    parser.add_argument("--lock", action="store_true")
    for name, value in asyncio.run(main(parser.parse_args())).items():
        print(f"{name:20} {value}")
