"""The gateway's client of the residency socket: requests that an expert is loaded, and keeps the latest tiers.

`ResidencyClient` implements `coe.experts.factory.ExpertLoader` over one connection that is opened again when it
breaks. `coe status` uses `shared_devices`. Messages between a gateway process and `coe up` are one JSON object a line:

    gateway -> coe up   {"acquire": 7, "expert": "law", "timeout": 60.0, "stand_in": ""}
                        {"end": 7}          the request ended, or no longer waits
                        {"report": 8}       what happens on the devices, and why
    coe up -> gateway   {"granted": 7, "tier": "asleep"}            with the expert's tier when the request arrived
                        {"refused": 7, "reason": "...", "retry_after": 12.5, "tier": "asleep"}    no tier: did not wait
                        {"report": 8, "devices": [...]}             see `coe.fleet.residency.residency`
                        {"tiers": {"law": {"tier": "awake", "waiting": 0, "switches": 3, "device": "gpu0"}}}

Tiers come at the beginning and at every change. When a connection ends, its requests end too. Only the owner may enter
the folder of the socket.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from coe.errors import ExpertAsleep
from coe.supervision import TaskFailed, ignore_failure, supervised

LINK = "residency.sock"
"""Symbolic link in the state folder to the socket of the running `coe up`."""
MAX_LINE_BYTES = 2**20


def encode(message: dict[str, Any]) -> bytes:
    return orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE)


async def read_messages(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """Yields messages until the connection ends or brings an invalid one."""
    try:
        while line := await reader.readline():
            yield orjson.loads(line)
    except (OSError, ValueError):  # ValueError: no JSON, or a line without end
        return


RECONNECT_INTERVAL = 0.2
"""Seconds between two attempts to connect."""
RESPONSE_TIMEOUT = 5.0
"""Seconds that a request waits for the connection, and for the response beyond its own timeout."""
MAX_WAIT_SECONDS = 3600.0
"""Longest time, in seconds, that a request may wait."""
_log = logging.getLogger(__name__)


@asynccontextmanager
async def connected_client(
    address: Path, *, task_failed: TaskFailed = ignore_failure
) -> AsyncIterator[ResidencyClient]:
    """A client that stays connected to the socket at `address` for the length of the block."""
    client = ResidencyClient(address)
    task = supervised(client.run, "residency-client", task_failed=task_failed)
    try:
        yield client
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class ResidencyClient:
    """Requests experts from the residency scheduler over a Unix socket.

    Call `acquire` before a request to an expert, and call its result when the request has ended.
    """

    def __init__(self, address: Path) -> None:
        self._address = address
        self._writer: asyncio.StreamWriter | None = None
        self._connected = asyncio.Event()
        self._responses: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self._number = 0
        self.tiers: Mapping[str, Mapping[str, Any]] = {}
        """By expert: tier, waiting, switches and device, as last received; empty while disconnected."""
        self.on_wait: Callable[[str, str, str, float], None] = lambda *_: None
        """Called after each `acquire` that waited, or could have: the expert, its tier at arrival, `granted` or
        `refused`, and seconds."""

    async def acquire(self, expert: str, *, deadline: float, stand_in: str) -> Callable[[], None]:
        """Waits until the expert is awake, at most until `deadline` (event loop clock). Returns the function that
        releases it. Raises ExpertAsleep."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        writer = await self._connection(expert)
        self._number += 1
        number = self._number
        response = self._responses[number] = loop.create_future()
        timeout = min(max(deadline - loop.time(), 0.0), MAX_WAIT_SECONDS)
        message = {"acquire": number, "expert": expert, "timeout": timeout, "stand_in": stand_in}
        try:
            writer.write(encode(message))
            async with asyncio.timeout(timeout + RESPONSE_TIMEOUT):
                granted = await response
        except TimeoutError:
            self._end(writer, number)
            raise _asleep(expert, "the fleet that should wake it does not answer", RESPONSE_TIMEOUT) from None
        except _Refused as refused:
            if refused.tier:
                self.on_wait(expert, refused.tier, "refused", loop.time() - began)
            raise _asleep(expert, refused.reason, refused.retry_after) from None
        except BaseException:
            self._end(writer, number)
            raise
        finally:
            self._responses.pop(number, None)
        self.on_wait(expert, granted["tier"], "granted", loop.time() - began)
        return partial(self._end, writer, number)

    async def report(self) -> list[dict[str, Any]]:
        """Return the state of each device and the reasons for it. Raises ExpertAsleep if the fleet does not answer."""
        try:
            return await fetch_report(self._address)
        except OSError:
            raise _asleep("", "the fleet does not answer", RESPONSE_TIMEOUT) from None

    async def _connection(self, expert: str) -> asyncio.StreamWriter:
        try:
            async with asyncio.timeout(RESPONSE_TIMEOUT):
                await self._connected.wait()
        except TimeoutError:
            raise _asleep(expert, "the fleet that should wake it cannot be reached", RESPONSE_TIMEOUT) from None
        assert self._writer is not None
        return self._writer

    def _end(self, writer: asyncio.StreamWriter, number: int) -> None:
        if writer is self._writer and not writer.is_closing():
            writer.write(encode({"end": number}))

    async def run(self) -> None:
        """Connects, reads messages, and connects again, until cancelled."""
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._address, limit=MAX_LINE_BYTES)
            except OSError:
                await asyncio.sleep(RECONNECT_INTERVAL)
                continue
            self._writer = writer
            self._connected.set()
            try:
                async for message in read_messages(reader):
                    self._handle(message)
            finally:
                self._disconnected(writer)
            _log.warning("the fleet has closed its connection; trying again every %g s", RECONNECT_INTERVAL)
            await asyncio.sleep(RECONNECT_INTERVAL)

    def _disconnected(self, writer: asyncio.StreamWriter) -> None:
        self._connected.clear()
        self._writer, self.tiers = None, {}
        writer.close()
        for response in self._responses.values():
            if not response.done():
                response.set_exception(_Refused("the fleet that should wake it has gone", RESPONSE_TIMEOUT, ""))

    def _handle(self, message: Mapping[str, Any]) -> None:
        if "tiers" in message:
            self.tiers = message["tiers"]
            return
        number = next((message[kind] for kind in ("granted", "refused") if kind in message), 0)
        response = self._responses.get(number)
        if response is None or response.done():
            return
        if "refused" in message:
            refused = _Refused(message["reason"], message["retry_after"], message.get("tier", ""))
            response.set_exception(refused)
        else:
            response.set_result(message)


async def fetch_report(address: Path) -> list[dict[str, Any]]:
    """Return the state of each device and the reasons for it. Raises OSError if nothing answers at `address`."""
    async with asyncio.timeout(RESPONSE_TIMEOUT):
        reader, writer = await asyncio.open_unix_connection(address, limit=MAX_LINE_BYTES)
        try:
            writer.write(encode({"report": 1}))
            async for message in read_messages(reader):
                if "report" in message:
                    return list(message["devices"])
        finally:
            writer.close()
    raise ConnectionResetError(f"{address}: the connection was closed without a report")


async def shared_devices(home: Path) -> list[dict[str, Any]]:
    """Return the report of the running `coe up` of a state folder; empty if it manages no devices."""
    try:
        return await fetch_report((home / LINK).readlink())
    except OSError:  # no link, or no process behind it; TimeoutError is one
        return []


class _Refused(Exception):
    """The fleet refused a request. `tier` is the expert's when the request arrived, empty if it did not wait."""

    def __init__(self, reason: str, retry_after: float | None, tier: str) -> None:
        super().__init__(reason)
        self.reason, self.retry_after, self.tier = reason, retry_after, tier


def _asleep(expert: str, reason: str, retry_after: float | None) -> ExpertAsleep:
    error = ExpertAsleep(
        f"expert {expert!r}: {reason}" if expert and not reason.startswith("expert ") else reason, expert=expert
    )
    error.retry_after = retry_after
    return error
