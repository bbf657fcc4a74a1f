"""The last step of the line: hand a record to the log's writer, with the text's embedding where that is asked for."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor
from dataclasses import replace
from types import TracebackType
from typing import Self

import numpy as np

from coe.core import Encoder
from coe.records import RecordWriter
from coe.records.record import RoutingRecord
from gateway.request.trace import Trace

_log = logging.getLogger("gateway")

MAX_PENDING = 256
"""Embeddings under way at a time; beyond it records go without one rather than pile up."""


class Recorder:
    """Never waits and never raises: embeddings are computed after the answer, in a thread."""

    def __init__(self, writer: RecordWriter, *, encoder: Encoder | None, threads: Executor) -> None:
        self._writer = writer
        self._encoder = encoder
        self._threads = threads
        self._pending: set[asyncio.Future[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await asyncio.gather(*self._pending, return_exceptions=True)

    def observe(self, trace: Trace) -> None:
        """Queue the record of a finished request, if it was routed. One that ended before is counted and in the access
        log, but has no record: otherwise strangers could push the records of real requests out of the log."""
        if trace.decision is None:
            return
        record, text = trace.record(), trace.text
        if self._encoder is None or not text or len(self._pending) >= MAX_PENDING:
            self._writer.put(record)
            return
        task = asyncio.ensure_future(self._embed(self._encoder, record, text))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _embed(self, encoder: Encoder, record: RoutingRecord, text: str) -> None:
        try:
            vectors = await asyncio.get_running_loop().run_in_executor(self._threads, encoder.encode, [text])
            record = replace(record, embedding=vectors[0].astype(np.float16).tobytes())
        except Exception:  # whatever the encoder has, the record is worth more than its vector
            _log.exception("record %s goes without its embedding", record.request_id)
        self._writer.put(record)
