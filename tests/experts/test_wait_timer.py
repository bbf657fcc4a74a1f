"""The one timer of a connection, moved between waits of different lengths, on a clock that the test sets."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import pytest

from coe.experts.http.connection import IDLE_TIMEOUT, Connection

pytestmark = pytest.mark.anyio
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT, END = b"3\r\nhel\r\n", b"0\r\n\r\n"


class Timer:
    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when, self.call, self.cancelled = when, call, False

    def cancel(self) -> None:
        self.cancelled = True


class ClockLoop:
    """An event loop whose time moves only when `move_to` is called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def create_future(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        self.timers = [timer for timer in self.timers if not timer.cancelled]
        assert self.timers == [], "a second timer"
        self.timers.append(timer := Timer(when, call))
        return timer

    async def move_to(self, now: float) -> None:
        """Move the time, call the timers that are due, and let the tasks run."""
        while due := [timer for timer in self.timers if timer.when <= now and not timer.cancelled]:
            self.timers.remove(due[0])
            self.now = due[0].when
            due[0].call()
        self.now = now
        await settled()


class SilentTransport(asyncio.Transport):
    aborted = False

    def write(self, data: Any) -> None: ...

    def abort(self) -> None:
        self.aborted = True

    def get_write_buffer_size(self) -> int:
        return 0


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_each_wait_has_its_own_limit_whatever_the_waits_before_it_had() -> None:
    loop, transport, idle = ClockLoop(), SilentTransport(), deque[Connection]()
    connection = Connection(cast("asyncio.AbstractEventLoop", loop), set())
    connection.connection_made(transport)

    async def wait(within: float) -> asyncio.Task[bytes]:
        task = asyncio.ensure_future(connection.chunk(within))
        await settled()
        return task

    sent = asyncio.ensure_future(connection.send(b"head", b"body"))
    await settled()
    connection.data_received(HEAD)
    await sent

    for start, within, arrival in ((0, 10, 1), (1, 2, 2), (2, 10, 11), (11, 60, 12), (12, 1, 12.5), (12.5, 3, 15)):
        assert loop.now == start
        waiting = await wait(within)
        await loop.move_to(arrival)  # timers of earlier, shorter waits are due before
        assert not waiting.done()
        connection.data_received(EVENT)
        assert await waiting == b"hel"

    silent = await wait(1)
    await loop.move_to(15.9)
    assert not silent.done()
    await loop.move_to(16)
    assert silent.done()
    with pytest.raises(TimeoutError):
        await silent

    await loop.move_to(200)  # no wait, no limit
    last = await wait(5)
    await loop.move_to(204)
    connection.data_received(EVENT + END)
    assert await last == b"hel"
    assert await connection.chunk(5) == b""
    connection.release(idle)
    await loop.move_to(204 + IDLE_TIMEOUT - 1)
    assert list(idle) == [connection]
    await loop.move_to(204 + IDLE_TIMEOUT)
    assert (transport.aborted, list(idle)) == (True, [])


async def connected() -> tuple[ClockLoop, SilentTransport, Connection]:
    loop, transport = ClockLoop(), SilentTransport()
    connection = Connection(cast("asyncio.AbstractEventLoop", loop), set())
    connection.connection_made(transport)
    return loop, transport, connection


async def test_the_limit_holds_for_all_chunks_until_it_is_lifted() -> None:
    loop, _, connection = await connected()
    sent = asyncio.ensure_future(connection.send(b"head", b"body", limit=30))
    await settled()
    connection.data_received(HEAD)
    await sent
    first = asyncio.ensure_future(connection.chunk())
    await loop.move_to(20)
    connection.data_received(EVENT)
    assert await first == b"hel"
    second = asyncio.ensure_future(connection.chunk(15))
    await settled()
    await loop.move_to(30)
    with pytest.raises(TimeoutError):
        await second
    connection.limit = math.inf
    third = asyncio.ensure_future(connection.chunk())
    await loop.move_to(300)
    assert not third.done()
    connection.data_received(EVENT)
    assert await third == b"hel"


async def test_a_wait_ends_although_its_timer_fires_just_after_bytes_that_complete_nothing() -> None:
    loop, _, connection = await connected()
    sent = asyncio.ensure_future(connection.send(b"head", b"body"))
    await settled()
    connection.data_received(HEAD)
    await sent
    waiting = asyncio.ensure_future(connection.chunk(10))
    await settled()
    connection.data_received(b"0")  # wakes the reader, whose task runs after the timer
    await loop.move_to(10)
    assert waiting.done()
    with pytest.raises(TimeoutError):
        await waiting
