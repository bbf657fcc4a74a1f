"""Latency of admin requests, and of other requests meanwhile, at a running gateway with a plan.

python -m benchmarks.admin_requests http://127.0.0.1:8080 mean_active_b=8,9,10,12
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

PROBE_INTERVAL_SECONDS = 0.002
"""Between two requests of /health/live."""


async def main(url: str, row: str, limits: list[float]) -> None:
    async with aiohttp.ClientSession() as session:

        async def request_ms(path: str, body: Any = None) -> float:
            began = time.perf_counter()
            async with session.request("POST" if body else "GET", url + path, json=body) as answer:
                await answer.read()
                answer.raise_for_status()
            return 1000 * (time.perf_counter() - began)

        async def alone() -> list[float]:
            await asyncio.sleep(2)
            return [0.0]

        async def repeated(path: str) -> list[float]:
            return [await request_ms(path) for _ in range(20)]

        async def solved() -> list[float]:
            return [await request_ms("/v1/map/solve", {row: limit}) for _ in range(5) for limit in limits]

        async def reported() -> list[float]:
            return [await request_ms("/v1/report")]

        await report("no admin request", alone, request_ms)
        await report("/v1/map/solve", solved, request_ms)
        await report("/v1/map", lambda: repeated("/v1/map"), request_ms)
        await report("/v1/artifacts", lambda: repeated("/v1/artifacts"), request_ms)
        await report("/v1/report", reported, request_ms)


async def report(
    name: str, work: Callable[[], Awaitable[list[float]]], request_ms: Callable[..., Awaitable[float]]
) -> None:
    """Print the latency of `work` and of other requests meanwhile, in milliseconds."""
    over, others = asyncio.Event(), list[float]()

    async def probe() -> None:
        while not over.is_set():
            others.append(await request_ms("/health/live"))
            await asyncio.sleep(PROBE_INTERVAL_SECONDS)

    task = asyncio.create_task(probe())
    took = await work()
    over.set()
    await task
    others.sort()
    print(
        f"{name:26} median {statistics.median(took):7.1f} largest {max(took):7.1f}   others "
        f"median {statistics.median(others):5.1f} p99 {others[int(0.99 * len(others))]:6.1f} ({len(others)})"
    )


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("url")
    arguments.add_argument("sweep", help="ROW=LIMIT,LIMIT,...")
    given = arguments.parse_args()
    swept, _, numbers = given.sweep.partition("=")
    asyncio.run(main(given.url.rstrip("/"), swept, [float(one) for one in numbers.split(",")]))
