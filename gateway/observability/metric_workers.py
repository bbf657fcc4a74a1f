"""The worker processes of one gateway answer for each other: whichever is asked for its metrics shows those of all.

Each worker holds a number by a lock in a shared folder, answers on a socket there with a snapshot of its tallies, and
leaves the last one behind as a file. A worker started in the place of an ended one counts on from that file, so totals
never fall; one that was killed loses what it counted since it was last asked.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from gateway.observability.metric_registry import Family, MetricRegistry, read, taken_at

PATIENCE = 1.0
"""Seconds that a sibling has to answer; after that its last snapshot counts."""
MAX_WORKERS = 1024

Siblings = Callable[[], Awaitable[list[list[Family]]]]
"""The families of every other worker, ended ones included."""


@asynccontextmanager
async def among_workers(folder: Path, tallies: MetricRegistry) -> AsyncIterator[Siblings]:
    """Be one of the workers that share `folder`."""
    number, lock = _claim(folder)
    tallies.worker, tallies.gateway = number, folder.name
    last = _last(folder, number)
    with suppress(FileNotFoundError):
        tallies.resume(last.read_bytes())
    address = _address(folder, number)
    address.unlink(missing_ok=True)

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        os.utime(lock)  # cleaners of temporary folders take away what looks forgotten
        with suppress(OSError):
            writer.write(tallies.snapshot())
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(answer, address)
    try:
        yield partial(_siblings, folder, number)
    finally:
        server.close()
        _keep(last, tallies.snapshot())
        os.close(lock)


def _claim(folder: Path) -> tuple[int, int]:
    """The smallest free number, and the descriptor that holds it as long as this process lives."""
    for number in range(MAX_WORKERS):
        lock = os.open(folder / f"{number}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return number, lock
    raise RuntimeError(f"{folder}: more than {MAX_WORKERS} workers")


async def _siblings(folder: Path, own: int) -> list[list[Family]]:
    return await asyncio.gather(*(_families(folder, number) for number in _numbers(folder) if number != own))


def _numbers(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob("*.lock"))


async def _families(folder: Path, number: int) -> list[Family]:
    """What a worker answers, or of one that does not the last that it said and that outlives it."""
    last = _last(folder, number)
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_unix_connection(_address(folder, number))
            try:
                snapshot = await reader.read()
            finally:
                writer.close()
        _keep(last, snapshot)
        return read(snapshot)
    except (OSError, TimeoutError, ValueError):  # ended, busy, or killed in mid-answer
        with suppress(FileNotFoundError):
            return [family for family in read(last.read_bytes()) if not family.live]
        return []


def _keep(last: Path, snapshot: bytes) -> None:
    """Leave a snapshot behind, unless a later one is there or the disk is full. Raises ValueError when it is none."""
    at = taken_at(snapshot)
    with suppress(FileNotFoundError):
        if taken_at(last.read_bytes()) >= at:
            return
    draft = last.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        draft.write_bytes(snapshot)
        draft.replace(last)


def _address(folder: Path, number: int) -> Path:
    return folder / f"{number}.sock"


def _last(folder: Path, number: int) -> Path:
    return folder / f"{number}.json"
