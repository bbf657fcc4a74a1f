"""What administrators' questions take, and whether other requests wait for them, at a running gateway with a plan:

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

EVERY = 0.002
"""Seconds between two looks at /health/live."""


async def main(url: str, row: str, limits: list[float]) -> None:
    async with aiohttp.ClientSession() as session:

        async def asked(path: str, body: Any = None) -> float:
            began = time.perf_counter()
            async with session.request("POST" if body else "GET", url + path, json=body) as answer:
                await answer.read()
                answer.raise_for_status()
            return 1000 * (time.perf_counter() - began)

        async def alone() -> list[float]:
            await asyncio.sleep(2)
            return [0.0]

        async def repeated(path: str) -> list[float]:
            return [await asked(path) for _ in range(20)]

        async def solved() -> list[float]:
            return [await asked("/v1/map/solve", {row: limit}) for _ in range(5) for limit in limits]

        await told("nothing asked", alone, asked)
        await told("/v1/map/solve, the first", lambda: first(asked, row, limits[0]), asked)
        await told("/v1/map/solve, the next", solved, asked)
        await told("/v1/map", lambda: repeated("/v1/map"), asked)
        await told("/v1/artifacts", lambda: repeated("/v1/artifacts"), asked)
        await told("/v1/status", lambda: first(asked, "", 0.0), asked)


async def first(asked: Callable[..., Awaitable[float]], row: str, limit: float) -> list[float]:
    return [await asked("/v1/map/solve", {row: limit}) if row else await asked("/v1/status")]


async def told(name: str, work: Callable[[], Awaitable[list[float]]], asked: Callable[..., Awaitable[float]]) -> None:
    """Print what `work` took, and what other requests did meanwhile, in milliseconds."""
    over, looks = asyncio.Event(), list[float]()

    async def look() -> None:
        while not over.is_set():
            looks.append(await asked("/health/live"))
            await asyncio.sleep(EVERY)

    task = asyncio.create_task(look())
    took = await work()
    over.set()
    await task
    looks.sort()
    print(
        f"{name:26} median {statistics.median(took):7.1f} largest {max(took):7.1f}   others "
        f"median {statistics.median(looks):5.1f} p99 {looks[int(0.99 * len(looks))]:6.1f} ({len(looks)})"
    )


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("url")
    arguments.add_argument("sweep", help="ROW=LIMIT,LIMIT,...")
    given = arguments.parse_args()
    swept, _, numbers = given.sweep.partition("=")
    asyncio.run(main(given.url.rstrip("/"), swept, [float(one) for one in numbers.split(",")]))
