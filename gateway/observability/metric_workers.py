"""Shares metrics between the worker processes of one gateway, so that any worker can serve `/metrics` for all workers.

Each worker stores its metrics in a file of a shared folder every few seconds, and when it shows them. A worker that
replaces an ended one continues from that file, so totals never fall; a killed worker loses what it counted since.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import orjson

from coe.supervision import supervised
from gateway.observability.metrics import Metrics, Snapshot

STORE_SECONDS = 1.0
"""Interval in which a worker stores its metrics: what it counted since is missing on the pages of the others."""
FRESH_SECONDS = 10.0
"""Age from which a worker counts as ended or frozen, so that its gauges are left out."""


@asynccontextmanager
async def share_metrics(own: Path, metrics: Metrics) -> AsyncIterator[None]:
    """Joins the workers whose files are in the same folder as `own`, which is named by the number of this worker."""
    metrics.worker = int(own.name)
    metrics.resume(own)

    def store() -> None:
        draft = own.with_suffix(".draft")
        with suppress(OSError):  # the disk is full
            draft.write_bytes(metrics.snapshot())
            draft.replace(own)

    def read_siblings() -> list[tuple[Snapshot, bool]]:
        store()  # what this worker is about to show
        siblings = []
        for path in own.parent.iterdir():
            if path.name.isdecimal() and path != own:
                is_fresh = time.time() - path.stat().st_mtime < FRESH_SECONDS
                siblings.append((orjson.loads(path.read_bytes()), is_fresh))
        return siblings

    async def run() -> None:
        while True:
            store()
            await asyncio.sleep(STORE_SECONDS)

    metrics.siblings = read_siblings
    task = supervised(run, "metrics", task_failed=metrics.task_failed)
    try:
        yield
    finally:
        task.cancel()
        store()
