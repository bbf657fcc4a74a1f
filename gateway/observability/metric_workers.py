"""Shares metrics between the worker processes of one gateway, so that any worker can serve
`/metrics` for all workers.

Each worker serves snapshots of its metrics on a Unix socket in a shared folder. Its last snapshot stays there as a
file, written whenever any worker shows it. A worker that replaces an ended one continues from that file, so totals
never fall; a killed worker loses what it counted since its last snapshot.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import orjson

from gateway.observability.metrics import Metrics, Snapshot

SIBLING_TIMEOUT_SECONDS = 1.0
"""Time limit of a sibling's reply; after that its last snapshot counts."""


@asynccontextmanager
async def share_metrics(own: Path, metrics: Metrics) -> AsyncIterator[None]:
    """Joins the workers whose files are in the same folder as `own`, which is named by the number of this worker."""
    folder = own.parent
    metrics.worker = int(own.name)
    with suppress(OSError, ValueError):
        metrics.resume(own.with_suffix(".json").read_bytes())

    def store() -> bytes:
        """Make a snapshot, and store it unless the disk is full."""
        snapshot, draft = metrics.snapshot(), own.with_suffix(".draft")
        with suppress(OSError):
            draft.write_bytes(snapshot)
            draft.replace(own.with_suffix(".json"))
        return snapshot

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(store())
            await writer.drain()
        writer.close()

    async def read_siblings() -> list[tuple[Snapshot, bool]]:
        others = {path.with_suffix("") for path in folder.iterdir()} - {own}
        found = await asyncio.gather(*map(_read, sorted(others)))
        store()  # last, so that it holds all that this worker is about to show
        return found

    own.with_suffix(".sock").unlink(missing_ok=True)
    server = await asyncio.start_unix_server(answer, own.with_suffix(".sock"))
    metrics.siblings = read_siblings
    try:
        yield
    finally:
        server.close()
        store()


async def _read(worker: Path) -> tuple[Snapshot, bool]:
    """The snapshot of a worker, and whether it runs. If it does not reply, its last one."""
    try:
        async with asyncio.timeout(SIBLING_TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_unix_connection(worker.with_suffix(".sock"))
            try:
                return orjson.loads(await reader.read()), True
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):  # ended, busy, or killed in mid-answer
        with suppress(OSError, ValueError):
            return orjson.loads(worker.with_suffix(".json").read_bytes()), False
        return {}, False
