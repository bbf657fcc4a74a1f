"""A worker process for the tests: counts, prints a line, and waits. Arguments: FOLDER COUNT."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from gateway.observability.metric_workers import share_metrics
from gateway.observability.metrics import MetricRegistry


def registry() -> MetricRegistry:
    found = MetricRegistry()
    found.counter("c_total", "C.")
    found.gauge("busy", "B.", (), lambda: {(): 1.0}, largest=False)
    return found


async def main(folder: Path, count: int) -> None:
    own = registry()
    async with share_metrics(folder, own):
        own.families()[0].add((), count)
        print("ready", flush=True)  # noqa: T201
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
