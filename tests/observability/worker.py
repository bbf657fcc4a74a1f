"""A worker process for the tests: counts, prints a line, and waits. Arguments: PATH COUNT."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from gateway.observability.metrics import Metrics, share_metrics


def counted(count: int) -> Metrics:
    """Metrics with `count` refused requests, and a gauge."""
    metrics = Metrics()
    metrics.gauge("busy", "B.", lambda: 1.0)
    for _ in range(count):
        metrics.count("coe_refused_total", "x")
    return metrics


async def main(own: Path, count: int) -> None:
    async with share_metrics(own, counted(count)):
        await asyncio.sleep(0)  # which stores them
        print("ready", flush=True)  # noqa: T201
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
