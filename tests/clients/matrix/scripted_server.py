"""A deterministic model server that speaks Chat Completions, Responses and Messages and can hold tool loops.

Each expert has a base URL of its own, `/EXPERT/v1`. `seen` holds every request with its view, its expert and whether
the client closed it before its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from tests.clients.matrix import chat_turns, messages_turns, responses_turns
from tests.clients.matrix.script import Turn, View, next_turn

PAUSE = 0.02
"""Seconds between the pieces of a stream, so that they usually arrive as several."""
ARRIVAL_SECONDS = 60.0
"""Longest time that the second half of a stream waits for the arrival of the first."""


@dataclass(slots=True)
class Seen:
    """A request: its expert, the API's path, the parsed body, and what became of the answer."""

    expert: str
    path: str
    body: dict[str, Any]
    view: View
    turn: Turn
    stalled: bool = False
    """The answer has begun and its rest is held back."""
    closed: bool = False
    """The client closed the connection before the end of the answer."""


class ScriptedServer:
    """Serves the script. `seen` is in order of arrival.

    A stream sends its second half only after `has_arrived()` is true. Otherwise both halves could arrive as one piece
    on a busy machine.
    """

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.root = ""
        self.has_arrived: Callable[[], object] = lambda: True
        self._stored = responses_turns.Stored()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen on a free port; `root` is the address."""
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post("/{expert}/v1/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.root = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield
        finally:
            await runner.cleanup()

    @contextmanager
    def waiting_for(self, has_arrived: Callable[[], object]) -> Iterator[None]:
        """Let the second half of each stream wait for this until the block ends."""
        self.has_arrived = has_arrived
        try:
            yield
        finally:
            self.has_arrived = lambda: True

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        path = request.match_info["path"]
        try:
            view, render = self._read(path, body)
        except LookupError as error:
            return web.json_response({"error": {"message": str(error), "type": "invalid_request_error"}}, status=404)
        seen = Seen(request.match_info["expert"], path, body, view, next_turn(view))
        self.seen.append(seen)
        whole, events = render(body, seen.turn, len(self.seen))
        if not body.get("stream"):
            return web.Response(body=orjson.dumps(whole), content_type="application/json")
        return await self._stream(request, seen, events)

    def _read(self, path: str, body: dict[str, Any]) -> tuple[View, Any]:
        if path == "chat/completions":
            return chat_turns.view_of(body), chat_turns.render
        if path == "messages":
            return messages_turns.view_of(body), messages_turns.render
        if path == "responses":
            return self._stored.view_of(body), self._stored.render
        raise LookupError(f"no such path here: {path}")

    async def _stream(self, request: web.Request, seen: Seen, events: list[bytes]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        try:
            for number, event in enumerate(events):
                await response.write(event)
                await asyncio.sleep(PAUSE)
                if number == len(events) // 2:
                    await self._until_arrived()
                if seen.turn.stalls and number >= len(events) // 2:
                    seen.stalled = True
                    await _until_closed(request)
                    seen.closed = True
                    return response
            await response.write_eof()
        except ConnectionError:
            seen.closed = True
        return response

    async def _until_arrived(self) -> None:
        with suppress(TimeoutError):  # the test then reports one piece
            async with asyncio.timeout(ARRIVAL_SECONDS):
                while not self.has_arrived():
                    await asyncio.sleep(0.01)


async def _until_closed(request: web.Request) -> None:
    while request.transport is not None and not request.transport.is_closing():
        await asyncio.sleep(0.01)
