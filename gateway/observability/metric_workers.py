"""Shares metrics between the worker processes of one gateway, so that any worker can serve
`/metrics` for all workers.

Each worker claims a number by a file lock in a shared folder, and serves snapshots of its registry on a Unix socket
there. Its last snapshot stays as a file, written whenever any worker shows it. A worker that replaces an ended one
continues from that file, so totals never fall; a killed worker loses what it counted since its last snapshot.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from gateway.observability.metrics import MetricFamily, MetricRegistry, Siblings, parse_snapshot, snapshot_time

SIBLING_TIMEOUT_SECONDS = 1.0
"""Time limit of a sibling's reply; after that its last snapshot counts."""
MAX_WORKERS = 1024


@asynccontextmanager
async def share_metrics(folder: Path, registry: MetricRegistry) -> AsyncIterator[Siblings]:
    """Joins the workers that share `folder`. Yields a function that returns the siblings' families."""
    number, lock = _claim_number(folder)
    registry.worker, registry.gateway = number, folder.name
    last = _snapshot_path(folder, number)
    with suppress(FileNotFoundError):
        registry.resume(last.read_bytes())
    address = _socket_path(folder, number)
    address.unlink(missing_ok=True)

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        os.utime(lock)  # cleaners of temporary folders delete old files
        with suppress(OSError):
            writer.write(registry.snapshot())
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(answer, address)
    try:
        yield partial(_all_siblings, folder, number, registry)
    finally:
        server.close()
        _store_snapshot(last, registry.snapshot())
        os.close(lock)


def _claim_number(folder: Path) -> tuple[int, int]:
    """The smallest free number, and the file descriptor whose lock holds it as long as this process lives."""
    for number in range(MAX_WORKERS):
        lock = os.open(folder / f"{number}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return number, lock
    raise RuntimeError(f"{folder}: more than {MAX_WORKERS} workers")


async def _all_siblings(folder: Path, own: int, registry: MetricRegistry) -> list[list[MetricFamily]]:
    found = await asyncio.gather(
        *(_sibling_families(folder, number) for number in _worker_numbers(folder) if number != own)
    )
    # Last, so that it holds all that this worker is about to show. It may be killed before a sibling asks for it.
    _store_snapshot(_snapshot_path(folder, own), registry.snapshot())
    return found


def _worker_numbers(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob("*.lock"))


async def _sibling_families(folder: Path, number: int) -> list[MetricFamily]:
    """The current families of a worker. If it does not reply, those of its last snapshot that outlive it."""
    last = _snapshot_path(folder, number)
    try:
        async with asyncio.timeout(SIBLING_TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_unix_connection(_socket_path(folder, number))
            try:
                snapshot = await reader.read()
            finally:
                writer.close()
        _store_snapshot(last, snapshot)
        return parse_snapshot(snapshot)
    except (OSError, TimeoutError, ValueError):  # ended, busy, or killed in mid-answer
        with suppress(FileNotFoundError):
            return [family for family in parse_snapshot(last.read_bytes()) if not family.live]
        return []


def _store_snapshot(last: Path, snapshot: bytes) -> None:
    """Stores a snapshot unless a newer one exists or the disk is full. Raises ValueError if it is invalid."""
    at = snapshot_time(snapshot)
    with suppress(FileNotFoundError):
        if snapshot_time(last.read_bytes()) >= at:
            return
    draft = last.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        draft.write_bytes(snapshot)
        draft.replace(last)


def _socket_path(folder: Path, number: int) -> Path:
    return folder / f"{number}.sock"


def _snapshot_path(folder: Path, number: int) -> Path:
    return folder / f"{number}.json"
