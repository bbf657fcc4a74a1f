"""The gateway's side: asks the fleet for experts that take turns, and knows what it said last."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from coe.errors import ExpertAsleep
from coe.fleet.residency.protocol import LONGEST, line, messages
from coe.supervision import TaskFailed, ignored, supervised

AGAIN = 0.2
"""Seconds between two tries to reach the fleet."""
PATIENCE = 5.0
"""Seconds that a request waits for the fleet to be reached, and for its refusal beyond the time it gave."""
LONGEST_HOLD = 3600.0
_log = logging.getLogger(__name__)


@asynccontextmanager
async def taking_turns(address: Path, *, task_failed: TaskFailed = ignored) -> AsyncIterator[ResidencyClient]:
    """Keep a connection to the fleet for the length of the block."""
    turns = ResidencyClient(address)
    task = supervised(turns.connected, "turns", task_failed=task_failed)
    try:
        yield turns
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class ResidencyClient:
    """`hold` an expert, and call what it gives back when the request is over."""

    def __init__(self, address: Path) -> None:
        self._address = address
        self._writer: asyncio.StreamWriter | None = None
        self._there = asyncio.Event()
        self._asked: dict[int, asyncio.Future[None]] = {}
        self._number = 0
        self.tiers: Mapping[str, Mapping[str, Any]] = {}
        """By expert: tier, held and switches, as the fleet said last; empty while it is away."""
        self.waited: Callable[[str, float], None] = lambda _expert, _seconds: None
        """Called with every wait that ended well, in seconds."""

    async def hold(self, expert: str, *, category: str, deadline: float, stand_in: str) -> Callable[[], None]:
        """Wait until the expert is awake and stays so, at most until a time of the event loop's clock. Raises
        ExpertAsleep."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        writer = await self._reached(expert)
        self._number += 1
        number = self._number
        answer = self._asked[number] = loop.create_future()
        within = min(max(deadline - loop.time(), 0.0), LONGEST_HOLD)
        message = {"hold": number, "expert": expert, "category": category, "within": within, "stand_in": stand_in}
        try:
            writer.write(line(message))
            async with asyncio.timeout(within + PATIENCE):
                await answer
        except TimeoutError:
            self._end(writer, number)
            raise _asleep(expert, "the fleet that should wake it does not answer", PATIENCE) from None
        except ExpertAsleep as error:
            raise _asleep(expert, str(error), error.retry_after) from None
        except BaseException:
            self._end(writer, number)
            raise
        finally:
            self._asked.pop(number, None)
        self.waited(expert, loop.time() - began)
        return partial(self._end, writer, number)

    async def _reached(self, expert: str) -> asyncio.StreamWriter:
        try:
            async with asyncio.timeout(PATIENCE):
                await self._there.wait()
        except TimeoutError:
            raise _asleep(expert, "the fleet that should wake it cannot be reached", PATIENCE) from None
        assert self._writer is not None
        return self._writer

    def _end(self, writer: asyncio.StreamWriter, number: int) -> None:
        if writer is self._writer and not writer.is_closing():
            writer.write(line({"end": number}))

    async def connected(self) -> None:
        """Connect, listen, and connect again, until cancelled."""
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._address, limit=LONGEST)
            except OSError:
                await asyncio.sleep(AGAIN)
                continue
            self._writer = writer
            self._there.set()
            try:
                async for message in messages(reader):
                    self._hear(message)
            finally:
                self._gone(writer)
            _log.warning("the fleet has closed its connection; trying again every %g s", AGAIN)
            await asyncio.sleep(AGAIN)

    def _gone(self, writer: asyncio.StreamWriter) -> None:
        self._there.clear()
        self._writer, self.tiers = None, {}
        writer.close()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(_asleep("", "the fleet that should wake it has gone", PATIENCE))

    def _hear(self, message: Mapping[str, Any]) -> None:
        if "tiers" in message:
            self.tiers = message["tiers"]
            return
        answer = self._asked.get(message.get("granted", message.get("refused", 0)))
        if answer is None or answer.done():
            return
        if "granted" in message:
            answer.set_result(None)
        else:
            answer.set_exception(_asleep("", message["why"], message["retry_after"]))


async def ask_tiers(address: Path) -> dict[str, Any]:
    """Tiers and the like by expert, as they are now. Raises OSError where nobody answers."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_unix_connection(address, limit=LONGEST)
        try:
            async for message in messages(reader):
                if "tiers" in message:
                    return dict(message["tiers"])
        finally:
            writer.close()
    return {}


def _asleep(expert: str, why: str, retry_after: float | None) -> ExpertAsleep:
    error = ExpertAsleep(
        f"expert {expert!r}: {why}" if expert and not why.startswith("expert ") else why, expert=expert
    )
    error.retry_after = retry_after
    return error
