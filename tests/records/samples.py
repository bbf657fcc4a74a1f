"""Records to write and logs to watch, for the tests of coe.records."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from coe.errors import StoreError
from coe.records import LogWriter
from coe.records.record import ENTRY, LogPage, LogQuery, RoutingLog, RoutingRecord


def record(number: int = 0, **changes: Any) -> RoutingRecord:
    """A usual record whose id and time follow from `number`."""
    fields: dict[str, Any] = {
        "request_id": f"request-{number:06d}",
        "time": 1_700_000_000.0 + number,
        "category": "code",
        "confidence": 0.75,
        "expert": "small",
        "reason": "routed",
        "propensity": 1.0,
        "candidates": ("small", "large"),
        "probabilities": {"code": 0.75, "general": 0.25},
        "stage": "lexical",
        "router": "v1",
        "config": "abc",
        "digest": "0" * 64,
        "outcome": "ok",
        "attempts": 1,
        "stream": True,
        "routing_ms": 0.25,
        "first_token_ms": 80.5,
        "total_ms": 900.0,
        "input_tokens": 12,
        "output_tokens": 200,
    }
    return RoutingRecord(**(fields | changes))


def records(count: int, start: int = 0) -> list[RoutingRecord]:
    return [record(number) for number in range(start, start + count)]


def ids(found: Sequence[RoutingRecord]) -> list[str]:
    return [one.request_id for one in found]


async def everything(log: RoutingLog, query: LogQuery | None = None) -> list[RoutingRecord]:
    """All records of a log, page by page."""
    found: list[RoutingRecord] = []
    query = query or LogQuery(limit=1_000)
    while True:
        page = await log.read(query)
        found += page.records
        if page.cursor == query.after:
            return found
        query = replace(query, after=page.cursor)


def writer_to(log: Any, **options: Any) -> LogWriter:
    """A writer of records alone."""
    return LogWriter(log, log, **options)


def in_spool(path: Path) -> list[Any]:
    """The entries that wait in a spool."""
    files = [file for file in (path.with_name(f"{path.name}.sending"), path) if file.exists()]
    return [ENTRY.decode(line) for file in files for line in file.read_bytes().split(b"\n") if line]


class WatchedLog:
    """A RoutingLog in memory, or in front of `inner`, that can be made to fail and lets a test wait for records."""

    def __init__(self, inner: RoutingLog | None = None) -> None:
        self.fails: Exception | None = None
        self.calls: list[int] = []
        self.stored: list[RoutingRecord] = []
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self._inner = inner
        self._changed = asyncio.Condition()

    async def append(self, records: Sequence[RoutingRecord]) -> None:
        self.entered.set()
        try:
            await self.gate.wait()
            if self.fails:
                raise self.fails
            if self._inner:
                await self._inner.append(records)
            self.stored += records
        finally:
            self.calls.append(len(records))
            async with self._changed:
                self._changed.notify_all()

    async def holds(self, count: int) -> None:
        """Wait until `count` different records have been appended."""
        await self._until(lambda: len({one.request_id for one in self.stored}) >= count)

    async def called(self, times: int) -> None:
        """Wait until append has been tried so often."""
        await self._until(lambda: len(self.calls) >= times)

    async def read(self, query: LogQuery) -> LogPage:
        raise StoreError("only written to in these tests")

    async def back(self, query: LogQuery) -> LogPage:
        raise StoreError("only written to in these tests")

    async def find(self, request_id: str) -> RoutingRecord | None:
        raise StoreError("only written to in these tests")

    async def aclose(self) -> None:
        if self._inner:
            await self._inner.aclose()

    async def _until(self, condition: Any) -> None:
        async with asyncio.timeout(60), self._changed:
            await self._changed.wait_for(condition)
